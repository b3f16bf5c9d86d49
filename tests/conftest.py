"""Shared by all tests: a data folder of their own, two threads, and the golden numbers."""

import os
import shutil

import numpy as np
import pytest
import torch
from trees import TREES

os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A fresh data folder for every test: none reads or writes the checkout's runs."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("HSNET_DATA", str(folder))
    torch.manual_seed(0)
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """PASCAL, COCO and FSS-1000 as small drawn trees, and their split lists."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, draw in TREES.items():
        draw(folder / name, folder / "splits")
    return folder


@pytest.fixture
def trees(drawn, tmp_path, monkeypatch):
    """A copy of them that a test may change, where the benchmarks look for it."""
    shutil.copytree(drawn, tmp_path / "images")
    monkeypatch.setenv("HSNET_IMAGES", str(tmp_path / "images"))
    monkeypatch.setenv("HSNET_SPLITS", str(tmp_path / "images" / "splits"))
    return tmp_path / "images"


def assert_close(ours, theirs, relative=1e-4):
    """Equal within `relative` of the standard deviation of theirs: the tolerance of the golden numbers."""
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape, f"shape {ours.shape}, golden {theirs.shape}"
    error = np.abs(ours - theirs).max() / theirs.std()
    print(f"largest error: {error:.1e} of the standard deviation")  # shown by pytest -rP
    assert error <= relative, f"largest error is {error:.1e} of the standard deviation, allowed {relative:.0e}"
