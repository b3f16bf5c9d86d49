"""4D convolutions over (query height, query width, support height, support width): three kernels, one interface.

    Conv4d(in_channels, out_channels, kernel_size, stride=1)
    forward: (b, in, hq, wq, hs, ws) -> (b, out, hq, wq, ceil(hs / stride), ceil(ws / stride))

The stride applies to the support dims alone; zero padding of kernel_size // 2 keeps the query dims as they are.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .fast.convolution import conv2d, in_float32, over_query, over_support, slices


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
    """Center-pivot 4D convolution, equation (5) of the paper: a 2D convolution over the query dims plus one over the support's.

    Of the k⁴ places of a 4D kernel it keeps the 2k² − 1 whose query offset or support offset is zero (equation 4). It has 2k²
    weights, in `query` and `support`, each with a bias: both read the centre.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.query = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.support = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def forward(self, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b d hq wq h2 w2"]:
        """The sum of both convolutions; `h2`, `w2` are `hs`, `ws` divided by the stride, rounded up."""
        result = over_support(partial(conv2d, self.support), x)  # b d hq wq h2 w2
        # The support position of the query branch is fixed, so only every stride-th one is needed.
        pruned = x[..., :: self.stride, :: self.stride]  # b c hq wq h2 w2
        for rows in slices(pruned, result):
            result[..., rows, :].add_(over_query(partial(conv2d, self.query), pruned[..., rows, :]))
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
        """One convolution, then the other; `h2`, `w2` are `hs`, `ws` divided by the stride, rounded up."""
        return over_query(partial(conv2d, self.query), over_support(partial(conv2d, self.support), x))


class DenseConv4d(_Conv4d):
    """The dense 4D kernel, equation (3) of the paper: k⁴ weights a channel pair, one bias. Slow; used in comparisons.

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
        """The 4D convolution; `h2`, `w2` are `hs`, `ws` divided by the stride, rounded up."""
        return in_float32(self._convolve, x)

    def _convolve(self, x):
        b, _, hq = x.shape[:3]
        pad = self.kernel_size // 2
        x = F.pad(x, (0, 0, 0, 0, 0, 0, pad, pad))  # query rows
        total = 0
        # PyTorch has 3D convolutions but no 4D ones: one 3D convolution for each offset of the query row, summed.
        for offset in range(self.kernel_size):
            rows = x[:, :, offset : offset + hq].movedim(2, 1).flatten(0, 1)  # (b hq) c wq hs ws
            total = total + F.conv3d(
                rows, self.weight[:, :, offset], stride=(1, self.stride, self.stride), padding=(pad, pad, pad)
            )
        total = total + self.bias.view(-1, 1, 1, 1)
        return total.view(b, hq, *total.shape[1:]).movedim(1, 2)  # b d hq wq h2 w2


KERNELS: dict[str, type[_Conv4d]] = {
    "center-pivot": CenterPivotConv4d,
    "separable": SeparableConv4d,
    "dense": DenseConv4d,
}
