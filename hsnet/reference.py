"""The authors' checkpoints: their names of tensors, and ours."""

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from .runs import why_unread

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


def load_reference(model: nn.Module, checkpoint: Path | dict[str, Tensor]) -> dict[str, str]:
    """Load the authors' released weights into a model; what to record of a file.

    Args:
        model: an `HSNet` with center-pivot kernels, the whole pyramid and the checkpoint's backbone.
        checkpoint: the file, or what `torch.load(path, weights_only=True)` returns; names with or without "module.".

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, or one for other settings: tensors that are missing, left over or of another shape.
    """
    record = {}
    if isinstance(checkpoint, Path):
        path = checkpoint
        if not path.is_file():
            raise FileNotFoundError(
                f"no file {path}: the authors link their checkpoints in the README of juhongm999/hsnet"
            )
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            if not all(isinstance(tensor, Tensor) for tensor in checkpoint.values()):
                raise ValueError("it contains objects that are not tensors")
        except Exception as error:  # torch raises many kinds for what is no checkpoint
            raise ValueError(f"{path} is not a checkpoint, or damaged ({why_unread(error)})") from error
        record = {"checkpoint": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    backbone, rest = {}, {}
    for name, tensor in _renamed(checkpoint, model).items():
        (backbone if name.startswith(BACKBONE) else rest)[name.removeprefix(BACKBONE)] = tensor
    model.backbone.load_unfolded(backbone)
    model.load_state_dict(rest, strict=False)  # `_renamed` has found that none is missing
    model.backbone.pretrained = False  # the checkpoint brought its own copy
    return record


def _renamed(state_dict, model):
    """The tensors by our names, without the unused ImageNet classifier; the backbone's are those of `Backbone.unfolded`."""
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
        "of another shape": [n for n in expected if n in renamed and renamed[n].shape != expected[n].shape],
    }
    found = [f"{len(n)} {what}: {', '.join(n[:4])}{', …' * (len(n) > 4)}" for what, n in problems.items() if n]
    if found:
        raise ValueError(
            f"this is not a reference checkpoint for {model.settings['backbone']} with {model.settings['kernel']} kernels, "
            f"{model.settings['layers']} layers, {model.settings['levels']} levels. {'; '.join(found)}"
        )
    return renamed
