"""Checks of the inputs of `HSNet`, with errors and warnings that name the next step."""

import math
import warnings

import torch
from torch import Tensor, nn

from .fast.machine import for_processor


def check_inputs(model: nn.Module, query: Tensor, support: Tensor, mask: Tensor, *, shots: bool) -> None:
    """Verify ranks, sizes and values; the shapes in the signatures are checked in the tests only.

    Values are verified on a CPU alone: a GPU's would have to be waited for. `warn_about_size` follows.

    Args:
        shots: whether supports have a dimension of shots.

    Raises:
        ValueError: naming what is wrong and the next step.
    """
    ranks = (("query", query, "b 3 h w"), ("support", support, "b k 3 h w" if shots else "b 3 h w"))
    for name, image, form in ranks:
        missing = len(form.split()) - image.ndim
        if missing or image.shape[-3] != 3:
            hint = ": add the missing dimension with image[None]" if missing == 1 else ""
            raise ValueError(f"{name} has shape {tuple(image.shape)}, expected {form}{hint}")
        if not image.is_floating_point():
            raise ValueError(f"{name} is {image.dtype}: pass backbone.normalize(image), which makes floats of uint8")
        if for_processor(image.device) and not torch.compiler.is_compiling() and not image.isfinite().all():
            wrong = (~image.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"{name} holds NaN or infinity, in batch item {wrong}: look at how that image was made")
    if mask.shape != (*support.shape[:-3], *support.shape[-2:]):
        raise ValueError(
            f"support_mask has shape {tuple(mask.shape)}, its image {tuple(support.shape)}: a mask needs the height and "
            "width of its image"
        )
    if query.shape[0] != support.shape[0]:
        raise ValueError(f"{query.shape[0]} queries but {support.shape[0]} supports: both need one batch size")
    warn_about_size(model, support)


def squeezed_size(side: int) -> int:
    """Side of the squeezed support of an image of `side` pixels: 1 up to 256 px, 2 up to 512, …"""
    return math.ceil(side / 256)


def warn_about_size(model: nn.Module, support: Tensor) -> None:
    """Warn, once for each model, of a support whose squeezed size differs from that of the model's training."""
    trained = model.training_size
    sides = {squeezed_size(side) for side in support.shape[-2:]}
    if trained is None or getattr(model, "warned", False) or sides == {squeezed_size(trained)}:
        return
    model.warned = True
    warnings.warn(
        f"the support is {support.shape[-2]} × {support.shape[-1]} px, this model was trained at {trained} px: "
        f"its squeezed support has another size ({sorted(sides)} instead of {squeezed_size(trained)} a side), "
        "so weights are read that training never changed. Resize the support to the training size; the query "
        "may keep its own.",
        stacklevel=4,
    )
