"""What makes the paper's five files fast; the figure does not need it, and a test holds both equal.

    correlation     correlation and first squeezing convolution fused: the pyramid is never stored as a whole
    convolution     convolutions of images so small that every output reads every input, as one matrix product
    normalization   group normalisation with ReLU where channels lie innermost: several times as fast on a CPU
    matmul          matrix products by the library that uses the widest instructions
    folding         frozen batch normalisation folded into the convolutions before it
    compiling       all of the figure by PyTorch's compiler
    machine         the choice between what is fast on a processor, the first four, and the few operations of a GPU

`applies` decides whether the first is taken; `machine.for_processor` decides for the others.
"""

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .machine import for_processor

GPU_SHARE = 1 / 32  # of a GPU's memory that the finest hypercorrelation of a batch may take
CPU_ACTIVATION = 2**24  # bytes of an activation of 16 channels, of all images that a CPU is given at once


def applies(model: nn.Module, query: Sequence[int], support: Sequence[int], stride: int = 8) -> bool:
    """Whether `correlation.encode` takes the place of masking, pyramid and encoder in an `HSNet`.

    The pyramid is built as a whole for other kernels, where gradients have to reach the features, and by a compiled
    network. On a GPU too, as long as it takes little of its memory: the slices of the fused path are thousands of small
    operations, and starting them takes longer than computing.

    Args:
        query, support: shapes (b, c, h, w) of the images, or with `stride=1` of their finest features.
    """
    if model.settings["kernel"] != "center-pivot" or model.backbone.trainable or getattr(model, "compiled", False):
        return False
    device = next(model.decoder.parameters()).device
    if device.type != "cuda":
        return for_processor(device)
    positions = math.prod(math.ceil(side / stride) for side in (*query[-2:], *support[-2:]))
    room = torch.cuda.get_device_properties(device).total_memory * GPU_SHARE
    return 4 * query[0] * len(model.backbone.layers[0]) * positions > room


def features_of(
    backbone: nn.Module, query: Float[Tensor, "b 3 _h _w"], support: Float[Tensor, "n 3 _hs _ws"]
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The levels of queries and of supports: where their sizes are equal from one pass, except on a CPU."""
    if for_processor(query.device) or query.shape[1:] != support.shape[1:]:
        return backbone(query), backbone(support)
    levels, b = backbone(torch.cat([query, support])), len(query)
    return [[feature[:b] for feature in level] for level in levels], [[f[b:] for f in level] for level in levels]


def extract(backbone: nn.Module, extractor: nn.Module, image: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
    """The features by name that `extractor` finds in normalised images, on a CPU of a few images at a time."""
    network = _in_precision(backbone, extractor, image.device)
    parts = [network(part) for part in image.split(images_at_once(image))]
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _in_precision(backbone, extractor, device):
    """`extractor`, on a GPU under autocast a copy of it whose weights are in that precision already.

    Autocast remembers the weights that it has cast only of what is learned: those of a frozen network it would cast in
    each pass, two small operations a convolution.
    """
    if backbone.trainable or for_processor(device) or torch.compiler.is_dynamo_compiling():
        return extractor
    # On "meta", where shapes are computed without values, there is no autocast.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return extractor
    first = next(extractor.parameters())
    key = torch.get_autocast_dtype(device.type), first.device, first._version  # which changes when weights are loaded
    if getattr(backbone, "_cast", (None, None))[0] != key:
        network = copy.deepcopy(extractor)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(key[0])
        backbone._cast = key, (network,)  # in a tuple: no part of the backbone's state
    return backbone._cast[1][0]


def images_at_once(images: Float[Tensor, "b 3 h w"]) -> int:
    """How many images pass a backbone at once: on a CPU, activations that no cache holds make more images slower."""
    if not for_processor(images.device):
        return len(images)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    return max(1, CPU_ACTIVATION // (16 * dtype.itemsize * images[0, 0].numel()))
