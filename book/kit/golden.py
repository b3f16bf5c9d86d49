"""The authors' numbers, as the book and the tests compare with them: what their code returned for inputs made by a formula."""

import json
import runpy

import numpy as np
import torch
from torch import Tensor

from hsnet.config import ROOT

FOLDER = ROOT / "tests" / "golden"


def golden(name: str):
    """What the authors' code returned: a file of `tests/golden`, arrays by name (.npz) or parsed (.json).

    Raises:
        FileNotFoundError: no such file: the library was installed without its checkout.
    """
    path = FOLDER / name
    return json.loads(path.read_text()) if path.suffix == ".json" else np.load(path)


def golden_input(name: str, shape: tuple[int, ...]) -> Tensor:
    """What it was given: standard normal numbers, a function of the name alone."""
    return torch.from_numpy(runpy.run_path(str(FOLDER / "formula.py"))["values"](name, tuple(shape)))
