"""The installed package: a wheel holds the weights, lists and tables, and works from any folder."""

import importlib.util
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from hsnet.paths import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling, which builds the wheel, is not installed"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
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

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)

    run.folder = elsewhere
    return run


def test_predict_from_another_folder(call, installed):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    alpha = np.zeros((50, 70), np.uint8)
    alpha[10:40, 20:50] = 255
    Image.fromarray(np.dstack([image, alpha])).save(call.folder / "a.png")
    result = call("-m", "hsnet.predict", "--support", "a.png", "--query", "a.png")
    assert result.returncode == 0, result.stderr
    assert Image.open(call.folder / "masks" / "a-mask.png").size == (70, 50)
    where = call("-c", "import hsnet.paths as p; print(p.__file__, p.data_folder(), p.SHIPPED, sep='\\n')")
    assert where.stdout.splitlines() == [
        str(installed / "hsnet" / "paths.py"),
        "hsnet-data",
        str(installed / "hsnet" / "data"),
    ]


def test_every_program_starts_and_writes_nothing_into_the_package(call, installed):
    before = {p for p in installed.rglob("*") if "__pycache__" not in p.parts}
    programs = "train, evaluate, predict, export, prepare.__main__, reproduce.__main__, speed.__main__"
    result = call("-c", "import " + ", ".join(f"hsnet.{name}" for name in programs.split(", ")))
    assert result.returncode == 0, result.stderr
    result = call("-m", "hsnet.train", "--benchmark", "shapes", "--size", "64", "--epochs", "1", "--epoch-episodes", "4",
                  "--val-episodes", "4", "--test-episodes", "4", "--workers", "0", "--name", "tiny")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (call.folder / "hsnet-data" / "runs" / "tiny" / "model.safetensors").exists()
    assert {p for p in installed.rglob("*") if "__pycache__" not in p.parts} == before
