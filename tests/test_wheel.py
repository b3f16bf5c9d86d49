"""The installed package: a wheel holds the weights, lists and tables, and works from any folder."""

import functools
import importlib.util
import os
import zipfile

import numpy as np
import pytest
from helpers import python
from PIL import Image

from hsnet.paths import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling, which builds the wheel, is not installed"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def call(installed, tmp_path):
    """Run Python in a folder that is neither the checkout nor the package."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HSNET_")} | {"PYTHONPATH": path}

    return functools.partial(python, cwd=elsewhere, env=environment)


def test_predict_from_another_folder(call, installed, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    alpha = np.zeros((50, 70), np.uint8)
    alpha[10:40, 20:50] = 255
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "elsewhere" / "a.png")
    call("-m", "hsnet.predict", "--support", "a.png", "--query", "a.png")
    assert Image.open(tmp_path / "elsewhere" / "masks" / "a-mask.png").size == (70, 50)
    where = call("-c", "import hsnet.paths as p; print(p.__file__, p.data_folder(), p.SHIPPED, sep='\\n')")
    package = installed / "hsnet"
    assert where.stdout.splitlines() == [str(package / "paths.py"), "hsnet-data", str(package / "data")]


def test_every_program_starts_and_writes_nothing_into_the_package(call, installed, tmp_path):
    before = {p for p in installed.rglob("*") if "__pycache__" not in p.parts}
    programs = "train, evaluate, predict, export, prepare.__main__, reproduce.__main__, speed.__main__"
    call("-c", "import " + ", ".join(f"hsnet.{name}" for name in programs.split(", ")))
    call("-m", "hsnet.train", "--benchmark", "shapes", "--size", "64", "--epochs", "1", "--epoch-episodes", "4",
         "--val-episodes", "4", "--test-episodes", "4", "--workers", "0", "--name", "tiny")  # fmt: skip
    assert (tmp_path / "elsewhere" / "hsnet-data" / "runs" / "tiny" / "model.safetensors").exists()
    assert {p for p in installed.rglob("*") if "__pycache__" not in p.parts} == before
