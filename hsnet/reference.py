"""The authors' checkpoints: their names of tensors, and ours."""

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn

BACKBONE = "backbone.network."

# The names of the authors' implementation, and ours. Theirs count levels by ResNet stage: encoder_layer4 is the coarsest.
_REFERENCE_NAMES = (
    (r"^backbone\.", "backbone.network."),
    (r"^hpn_learner\.encoder_layer([234])\.", lambda m: f"encoder.squeezing.{int(m[1]) - 2}.layers."),
    (r"^hpn_learner\.encoder_layer[43]to([32])\.", lambda m: f"encoder.mixing.{int(m[1]) - 2}.layers."),
    (r"^hpn_learner\.decoder1\.", "decoder.before."),
    (r"^hpn_learner\.decoder2\.", "decoder.after."),
    (r"(layers\.\d)\.conv1\.", r"\1.query."),
    (r"(layers\.\d)\.conv2\.", r"\1.support."),
)
_UNUSED = re.compile(r"^backbone\.(fc|classifier)\.")


def load_reference(path: Path, model: nn.Module) -> dict[str, str]:
    """Load a file of the authors' released weights into a model; what to record of it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, or one for other settings, naming what differs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: the authors link their checkpoints in the README of juhongm999/hsnet")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
            raise ValueError("it holds other things than tensors")
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise ValueError(f"{path} is no checkpoint, or damaged ({str(error).splitlines()[0]})") from error
    model.load_reference_state_dict(state_dict)
    return {"checkpoint": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def load_state_dict(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Load the tensors of the authors' checkpoint into a model. Raises as `from_reference` does."""
    tensors = from_reference(state_dict, model)
    backbone = {n: tensors.pop(n) for n in list(tensors) if n.startswith(BACKBONE)}
    model.backbone.load_unfolded({n.removeprefix(BACKBONE): t for n, t in backbone.items()})
    model.load_state_dict(tensors, strict=False)  # `from_reference` has found that none is missing
    model.backbone.pretrained = False  # the checkpoint brought its own copy


def from_reference(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of the authors' checkpoint to those of `model`, dropping the unused ImageNet classifier.

    The backbone's are those of `Backbone.unfolded`.

    Args:
        state_dict: as `torch.load(path, weights_only=True)` returns it; names with or without `module.`.
        model: the model that will load them: center-pivot kernels, the whole pyramid, the checkpoint's backbone.

    Raises:
        ValueError: tensors that are missing, left over or of another shape, each named.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        name = name.removeprefix("module.")
        if _UNUSED.match(name):
            continue
        for pattern, replacement in _REFERENCE_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    expected = {n: t for n, t in model.state_dict().items() if not n.startswith(BACKBONE)}
    expected |= {BACKBONE + n: t for n, t in model.backbone.unfolded().state_dict().items()}
    problems = {
        "missing": [n for n in expected if n not in renamed],
        "left over": [n for n in renamed if n not in expected],
        "of another shape": [
            f"{n} {tuple(renamed[n].shape)} instead of {tuple(expected[n].shape)}"
            for n in expected
            if n in renamed and renamed[n].shape != expected[n].shape
        ],
    }
    found = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', …' * (len(names) > 4)}"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise ValueError(
            f"this is not a reference checkpoint for {model.settings['backbone']} with {model.settings['kernel']} kernels, "
            f"{model.settings['layers']} layers, {model.settings['levels']} levels. " + "; ".join(found)
        )
    return renamed
