"""2D convolutions of very many very small images, as the 4D kernels need them.

Memory order: channels innermost (strides of shape "b hq wq hs ws c"). Inputs in any order are accepted; in this one the
2D convolutions over the support dims need no copy, and a transposition for those over the query dims moves whole vectors.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .machine import for_processor
from .matmul import matmul

PART = 2**25  # bytes of a result that may be held twice


def conv2d(conv: nn.Conv2d, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
    """`conv(images)`; on a processor, for images so small that every output reads every input, as one matrix product.

    So it is at the end of the pyramid, where the support is 1 × 1 or 2 × 2: a 3 × 3 window there is mostly padding, and
    most of a convolution's work would be multiplying zeros.
    """
    h, w = images.shape[2:]
    pad, stride = conv.kernel_size[0] // 2, conv.stride[0]
    if max(h, w) > pad + 1 or not for_processor(images.device):
        return in_float32(conv, images) if needs_float32(images, stride) else conv(images)
    h2, w2 = -(-h // stride), -(-w // stride)
    # What output (i, j) multiplies the whole image with: the kernel, moved so that its centre lies on the output.
    weights = [
        conv.weight[:, :, pad - i * stride :, pad - j * stride :][:, :, :h, :w] for i in range(h2) for j in range(w2)
    ]
    matrix = torch.stack(weights).permute(0, 1, 3, 4, 2).flatten(2).flatten(0, 1)  # (h2 w2 d) (h w c)
    rows = images.permute(0, 2, 3, 1).flatten(1)
    result = matmul(rows, matrix, conv.bias.repeat(h2 * w2))
    return result.view(-1, h2, w2, conv.out_channels).permute(0, 3, 1, 2)


def slices(x: Float[Tensor, "b c hq wq hs ws"], result: Tensor) -> list[slice]:
    """Support rows of `x` that are convolved at once: in training and on a GPU all; else so few that `result` is not held twice."""
    rows = x.shape[4]
    size = result.numel() * result.element_size()
    every = torch.is_grad_enabled() or not for_processor(x.device)
    step = rows if every else max(1, rows * PART // size)
    return [slice(begin, begin + step) for begin in range(0, rows, step)]


def needs_float32(images: Float[Tensor, "n c h w"], stride: int) -> bool:
    """Whether a convolution with this stride must not be done in half precision.

    On a CPU, oneDNN reads beyond images of which the stride leaves one column: what it returns, and what it returns as the
    gradient of the weights, then depends on what that memory held before. Strides of 1 are sound, and so is float32.
    """
    return images.device.type == "cpu" and 1 < stride >= images.shape[3]


def in_float32(function, x: Tensor) -> Tensor:
    """`function(x)`, on a CPU in float32 whatever autocast says.

    oneDNN, the library behind PyTorch's convolutions there, gives wrong gradients of small 3D convolutions in half precision on
    some processors, and writes where it must not: "double free or corruption" ends the process.
    """
    if x.device.type != "cpu":
        return function(x)
    with torch.autocast("cpu", enabled=False):
        return function(at_least_float32(x))


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if it is in half precision."""
    return x.float() if x.element_size() < 4 else x


def over_query(function, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b d h2 w2 hs ws"]:
    """Apply a function of images (n, c, h, w) over the query dims, each support position being an image of its own."""
    b, _, hq, wq, hs, ws = x.shape
    images = x.permute(0, 4, 5, 2, 3, 1).reshape(b * hs * ws, hq, wq, -1)
    # Copied by us where `reshape` has not: a convolution would put the channels outermost for its own copy.
    images = function(images.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return images.reshape(b, hs, ws, *images.shape[1:]).permute(0, 5, 3, 4, 1, 2)


def over_support(function, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b d hq wq h2 w2"]:
    """Apply a function of images (n, c, h, w) over the support dims, each query position being an image of its own."""
    b, _, hq, wq, hs, ws = x.shape
    images = x.permute(0, 2, 3, 4, 5, 1).reshape(b * hq * wq, hs, ws, -1)
    images = function(images.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return images.reshape(b, hq, wq, *images.shape[1:]).permute(0, 5, 1, 2, 3, 4)
