"""4D convolutions over (query height, query width, support height, support width): three kernels, one interface.

    Conv4d(in_channels, out_channels, kernel_size, stride=1)
    forward: (b, in, hq, wq, hs, ws) -> (b, out, hq, wq, ceil(hs / stride), ceil(ws / stride))

The stride applies to the support dims alone; zero padding of kernel_size // 2 keeps the query dims as they are.

Memory order: channels innermost (strides of shape "b hq wq hs ws c"). Inputs in any order are accepted; in this one the
2D convolutions over the support dims need no copy, and a transposition for those over the query dims moves whole vectors.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .fast.matmul import products

PART = 2**25  # bytes of a result that may be held twice


class _Conv4d(nn.Module):
    """What the three kernels share: the meaning and the check of their settings.

    Raises:
        ValueError: an even or non-positive `kernel_size`, or a `stride` below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}: it must be odd, so that the kernel has a centre")
        if stride < 1:
            raise ValueError(f"stride is {stride}: it must be 1 or more")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = kernel_size, stride

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


class CenterPivotConv4d(_Conv4d):
    """Center-pivot 4D convolution, equation (5): a 2D convolution over the query dims plus one over the support dims.

    Of the k⁴ weights of a 4D kernel only those are kept whose query offset or whose support offset is zero (equation 4):
    2k² of them. `query` and `support` hold them, each with a bias; the centre is read by both.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.query = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.support = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def forward(self, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b d hq wq h2 w2"]:
        """Convolve; see the module's docstring for shapes."""
        result = over_support(partial(convolve, self.support), x)
        # The support position of the query branch is fixed, so only every stride-th one is needed.
        pruned = x[..., :: self.stride, :: self.stride]
        # Without gradients some support rows at a time: there is never a second large tensor of the result's size.
        rows = pruned.shape[4]
        step = rows if torch.is_grad_enabled() else max(1, rows * PART // (result.numel() * result.element_size()))
        for begin in range(0, rows, step):
            some = slice(begin, begin + step)
            result[..., some, :] += over_query(partial(convolve, self.query), pruned[..., some, :])
        return result


class SeparableConv4d(_Conv4d):
    """Separable 4D convolution: a 2D convolution over the support dims (with the stride), then one over the query dims.

    The paper compares with a separable kernel without printing its details; here both steps have a bias, nothing stands
    between them, and the channels change in the first. The paper's variant may differ.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.support = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        self.query = nn.Conv2d(out_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b d hq wq h2 w2"]:
        """Convolve; see the module's docstring for shapes."""
        return over_query(partial(convolve, self.query), over_support(partial(convolve, self.support), x))


class DenseConv4d(_Conv4d):
    """The whole 4D kernel, equation (3): k⁴ weights a channel pair, one bias. Slow; here to be compared with.

    `weight` has shape (out, in, k, k, k, k), query offsets before support offsets.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[kernel_size] * 4))
        self.bias = nn.Parameter(torch.empty(out_channels))
        # PyTorch's own choice for its convolutions: uniform within one over the root of the number of inputs.
        bound = (in_channels * kernel_size**4) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b d hq wq h2 w2"]:
        """Convolve; see the module's docstring for shapes."""
        if x.device.type != "cpu":
            return self._convolve(x)
        # oneDNN, the library behind PyTorch's convolutions on a CPU, gives wrong gradients of small 3D convolutions in half
        # precision on some processors, and writes where it must not: "double free or corruption" ends the process.
        with torch.autocast("cpu", enabled=False):
            return self._convolve(at_least_float32(x))

    def _convolve(self, x):
        b, _, hq, wq, hs, ws = x.shape
        pad = self.kernel_size // 2
        x = F.pad(x, (0, 0, 0, 0, 0, 0, pad, pad))  # query rows
        total = 0
        # PyTorch has 3D convolutions but no 4D ones: one 3D convolution for each offset of the query row, summed.
        for offset in range(self.kernel_size):
            rows = x[:, :, offset : offset + hq].movedim(2, 1).reshape(b * hq, -1, wq, hs, ws)
            total = total + F.conv3d(
                rows, self.weight[:, :, offset], stride=(1, self.stride, self.stride), padding=(pad, pad, pad)
            )
        total = total + self.bias.view(-1, 1, 1, 1)
        return total.view(b, hq, *total.shape[1:]).movedim(1, 2)


KERNELS: dict[str, type[_Conv4d]] = {
    "center-pivot": CenterPivotConv4d,
    "separable": SeparableConv4d,
    "dense": DenseConv4d,
}


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
    images = x.permute(0, 2, 3, 4, 5, 1).reshape(b * hq * wq, hs, ws, -1).permute(0, 3, 1, 2)
    images = function(images).permute(0, 2, 3, 1)
    return images.reshape(b, hq, wq, *images.shape[1:]).permute(0, 5, 1, 2, 3, 4)


def convolve(conv: nn.Conv2d, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
    """`conv(images)`, for images so small that every output reads every input as one matrix product.

    So it is at the end of the pyramid, where the support is 1 × 1 or 2 × 2: a 3 × 3 window there is mostly padding, and
    most of a convolution's work would be multiplying zeros.
    """
    h, w = images.shape[2:]
    pad, stride = conv.kernel_size[0] // 2, conv.stride[0]
    if max(h, w) > pad + 1:
        if not needs_float32(images, stride):
            return conv(images)
        with torch.autocast("cpu", enabled=False):
            return conv(at_least_float32(images))
    h2, w2 = -(-h // stride), -(-w // stride)
    # What output (i, j) multiplies the whole image with: the kernel, moved so that its centre lies on the output.
    weights = [
        conv.weight[:, :, pad - i * stride :, pad - j * stride :][:, :, :h, :w] for i in range(h2) for j in range(w2)
    ]
    matrix = torch.stack(weights).permute(0, 1, 3, 4, 2).flatten(2).flatten(0, 1)  # (h2 w2 d) (h w c)
    rows = images.permute(0, 2, 3, 1).flatten(1)
    result = products(rows, matrix, conv.bias.repeat(h2 * w2))
    return result.view(-1, h2, w2, conv.out_channels).permute(0, 3, 1, 2)


def needs_float32(images: Float[Tensor, "n c h w"], stride: int) -> bool:
    """Whether a convolution with this stride must not be done in half precision.

    On a CPU, oneDNN reads beyond images of which the stride leaves one column: what it returns, and what it returns as the
    gradient of the weights, then depends on what that memory held before. Strides of 1 are sound, and so is float32.
    """
    return images.device.type == "cpu" and 1 < stride >= images.shape[3]


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if it is in half precision."""
    return x.float() if x.element_size() < 4 else x
