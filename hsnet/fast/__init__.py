"""What makes the paper's five files fast; the figure does not need it, and a test holds both equal.

    correlation     correlation and first squeezing convolution fused: the pyramid is never stored as a whole
    convolution     convolutions of images so small that every output reads every input, as one matrix product
    normalization   group normalisation with ReLU where channels lie innermost: several times as fast on a CPU
    matmul          matrix products by the library that uses the widest instructions
    folding         frozen batch normalisation folded into the convolutions before it

`applies` decides whether the first is taken; the others are taken wherever they are right.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

GPU_SHARE = 1 / 32  # of a GPU's memory that the finest hypercorrelation of a batch may take
CPU_ACTIVATION = 2**24  # bytes of an activation of 16 channels, of all images that a CPU is given at once


def applies(model: nn.Module, query: Sequence[int], support: Sequence[int], stride: int = 8) -> bool:
    """Whether `correlation.encode` takes the place of masking, pyramid and encoder in an `HSNet`.

    The pyramid is built as a whole for other kernels, and where gradients have to reach the features. On a GPU too, as long
    as it takes little of its memory: there the slices of the fused path are many small operations, and starting them takes
    longer than computing.

    Args:
        query, support: shapes (b, c, h, w) of the images, or with `stride=1` of their finest features.
    """
    if model.settings["kernel"] != "center-pivot" or model.backbone.trainable:
        return False
    device = next(model.decoder.parameters()).device
    if device.type != "cuda":
        return True
    positions = math.prod(math.ceil(side / stride) for side in (*query[-2:], *support[-2:]))
    room = torch.cuda.get_device_properties(device).total_memory * GPU_SHARE
    return 4 * query[0] * len(model.backbone.layers[0]) * positions > room


def images_at_once(images: Float[Tensor, "b 3 h w"]) -> int:
    """How many images pass a backbone at once: on a CPU, activations that no cache holds make more images slower."""
    if images.device.type != "cpu":
        return len(images)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    return max(1, CPU_ACTIVATION // (16 * dtype.itemsize * images[0, 0].numel()))
