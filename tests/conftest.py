"""Shared by all tests: a data folder of their own, two threads, and the golden numbers."""

import os

import numpy as np
import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A fresh data folder for every test: none reads or writes the checkout's runs."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("HSNET_DATA", str(folder))
    torch.manual_seed(0)
    return folder


def assert_close(ours, theirs, relative=1e-4):
    """Equal within `relative` of the standard deviation of theirs: the tolerance of the golden numbers."""
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape, f"shape {ours.shape}, golden {theirs.shape}"
    error = np.abs(ours - theirs).max() / theirs.std()
    print(f"largest error: {error:.1e} of the standard deviation")  # shown by pytest -rP
    assert error <= relative, f"largest error is {error:.1e} of the standard deviation, allowed {relative:.0e}"
