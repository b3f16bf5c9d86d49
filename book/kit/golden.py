"""The authors' numbers, as the book and the tests compare with them: what their code returned for inputs made by a formula."""

import functools
import json
import runpy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hsnet.model import HSNet
from hsnet.paths import ROOT

FOLDER = ROOT / "tests" / "golden"
FORMULA = runpy.run_path(str(FOLDER / "formula.py"))


def golden(name: str):
    """What the authors' code returned: a file of `tests/golden`, arrays by name (.npz) or parsed (.json).

    Raises:
        FileNotFoundError: no such file: the library was installed without its checkout.
    """
    path = FOLDER / name
    return json.loads(path.read_text()) if path.suffix == ".json" else np.load(path)


def golden_input(name: str, shape: Sequence[int]) -> Tensor:
    """What it was given: standard normal numbers, a function of the name alone."""
    return _formula("values", name, shape)


def _formula(function, name, shape):
    return torch.from_numpy(np.asarray(FORMULA[function](name, tuple(shape))))


@functools.cache
def _reference_tensors(backbone):
    return {
        # The half gigabyte of VGG's unused classifier is left empty.
        name: _formula("parameter", name, [0] if name.startswith("backbone.classifier.") else shape)
        for name, shape in golden(f"state_dict_{backbone}.json").items()
    }


def reference_state_dict(backbone: str = "resnet50", prefix: str = "") -> dict[str, Tensor]:
    """A checkpoint of the authors, as the formula fills it: a dictionary that may be changed, of tensors that may not."""
    return {prefix + name: tensor for name, tensor in _reference_tensors(backbone).items()}


def reference_model(backbone: str = "resnet50") -> HSNet:
    """The network with these parameters."""
    model = HSNet(backbone, pretrained=False).eval()
    model.load_reference_state_dict(reference_state_dict(backbone))
    return model


def golden_features(kind: str) -> list[list[Tensor]]:
    """The "query" or "support" features of `correlation.npz`: three levels, fine to coarse, of 2, 3 and 2 layers."""
    shapes = golden("correlation.npz")["layers"].tolist()
    layers = [golden_input(f"{kind}.{i}", shape) for i, shape in enumerate(shapes)]
    return [layers[:2], layers[2:5], layers[5:]]


def golden_convolutions() -> Iterator[tuple[tuple[int, ...], dict[str, Tensor], Tensor, Tensor]]:
    """The cases of `conv4d.npz`: arguments and state dict of a `CenterPivotConv4d`, its input, the authors' output."""
    theirs = golden("conv4d.npz")
    for case in range(5):
        c_in, c_out, k, stride, b, *sides = theirs[f"case{case}"].tolist()
        state = {}
        for ours, name in (("query", "conv1"), ("support", "conv2")):
            weight = golden_input(f"conv4d.{case}.{name}.weight", (c_out, c_in, k, k))
            state[f"{ours}.weight"] = weight * (2 / (c_in * k**2)) ** 0.5
            state[f"{ours}.bias"] = 0.1 * golden_input(f"conv4d.{case}.{name}.bias", (c_out,))
        x = golden_input(f"conv4d.{case}.input", (b, c_in, *sides))
        yield (c_in, c_out, k, stride), state, x, torch.from_numpy(theirs[f"output{case}"])


def golden_pyramid(backbone: str = "resnet50") -> tuple[list[Tensor], Tensor]:
    """A pyramid, fine to coarse, and the logits of the authors' encoder and decoder for it."""
    theirs = golden(f"learner_{backbone}.npz")
    stacks = [
        golden_input(f"hypercorrelation.{i}", (1, count, n, n, n, n)).relu()
        for i, (count, n) in enumerate(zip(theirs["channels"].tolist(), theirs["sizes"].tolist(), strict=True))
    ]
    return stacks[::-1], torch.from_numpy(theirs["logits"])  # their list goes from coarse to fine
