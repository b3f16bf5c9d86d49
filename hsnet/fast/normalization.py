"""Group normalisation with ReLU of six-dimensional tensors: on a CPU several times as fast as PyTorch's own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .convolution import at_least_float32
from .machine import for_processor


class GroupNormReLU(nn.GroupNorm):
    """Group normalisation of a (b, c, hq, wq, hs, ws) tensor over its channels' groups and all four dims, then ReLU.

    On a CPU, PyTorch's own is made for images and few positions. Here channels lie innermost, so that all it takes are sums
    of columns and one multiplication and addition. A GPU is given PyTorch's own, one operation, and an image with channels
    innermost, whose order newer versions of PyTorch keep.
    """

    def forward(self, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b c hq wq hs ws"]:
        """Normalise, and set negative values to 0; without gradients `x` may be overwritten."""
        if not for_processor(x.device):
            image = x.flatten(4).flatten(2, 3)
            return super().forward(image).relu_().view(x.shape)
        rows = _rows(x)
        if torch.is_grad_enabled():
            rows = _Normalise.apply(rows, self.weight, self.bias, self.num_groups, self.eps).relu_()
            return _unrows(rows, x)
        for item in rows:
            mean, inverse = _statistics(item, self.num_groups, self.eps)
            scale, shift = inverse * self.weight, self.bias - mean * inverse * self.weight
            for part in _parts(item):
                _scale_and_shift(part, scale, shift, out=part).relu_()
        return _unrows(rows, x)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight, bias, groups, eps):
        result = torch.empty_like(rows)
        statistics = [_statistics(item, groups, eps) for item in rows]
        for item, out, (mean, inverse) in zip(rows, result, statistics, strict=True):
            scale, shift = inverse * weight, bias - mean * inverse * weight
            for part, part_out in zip(_parts(item), _parts(out), strict=True):
                _scale_and_shift(part, scale, shift, out=part_out)
        ctx.groups = groups
        ctx.save_for_backward(rows, weight, *(tensor for pair in statistics for tensor in pair))
        return result

    @staticmethod
    def backward(ctx, gradients):
        rows, weight, *statistics = ctx.saved_tensors
        result = torch.empty_like(rows)
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        # Sums over many positions, and their squares, would lose too much in half precision.
        for i, (x, dy, dx) in enumerate(zip(rows, gradients, result, strict=True)):
            mean, inverse = statistics[2 * i : 2 * i + 2]
            # With n = inverse (x - mean): dx = inverse (w dy - <w dy> - n <w dy n>), <·> being means over the group.
            sum_dy, sum_dyn = torch.zeros_like(weight), torch.zeros_like(weight)
            for part_x, part_dy in zip(_parts(x), _parts(dy), strict=True):
                sum_dy += at_least_float32(part_dy).sum(0)
                sum_dyn += (at_least_float32(part_dy) * (part_x - mean)).sum(0)
            sum_dyn *= inverse
            of_weight += sum_dyn
            of_bias += sum_dy
            mean_dy = _over_group(weight * sum_dy / len(x), ctx.groups)
            mean_dyn = _over_group(weight * sum_dyn / len(x), ctx.groups)
            shift = inverse * (inverse * mean * mean_dyn - mean_dy)
            for part_x, part_dy, out in zip(_parts(x), _parts(dy), _parts(dx), strict=True):
                part = torch.addcmul(shift, at_least_float32(part_dy), inverse * weight)
                out.copy_(part.addcmul_(at_least_float32(part_x), -inverse * inverse * mean_dyn))
        return result, of_weight, of_bias, None, None


def _rows(x):
    """(b, c, hq, wq, hs, ws) as (b, positions, c): no copy where channels lie innermost."""
    return x.movedim(1, -1).flatten(1, 4)


def _unrows(rows, like):
    return rows.view(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)


def _parts(rows):
    """Slices that a processor's cache holds."""
    return rows.split(max(1, 2**17 // rows.shape[1]))


def _scale_and_shift(part, scale, shift, out):
    """part · scale + shift for each column, returned in `out`, which may be `part`."""
    if part.dtype == scale.dtype:
        return torch.addcmul(shift, part, scale, out=out)
    return out.copy_(torch.addcmul(shift, at_least_float32(part), scale))


def _statistics(rows, groups, eps):
    """Mean and inverse standard deviation of (positions, c) over each group, given for each channel."""
    parts = _parts(rows)
    means, variances = (torch.stack(values) for values in zip(*map(_mean_and_variance, parts), strict=True))
    shares = means.new_tensor([[len(part) / len(rows)] for part in parts])
    mean = (shares * means).sum(0)  # of each channel
    variance = (shares * (variances + (means - mean) ** 2)).sum(0)
    of_group = _over_group(mean, groups)
    variance = _over_group(variance + (mean - of_group) ** 2, groups)
    return of_group, (variance + eps).rsqrt()


def _mean_and_variance(part):
    """Of each column, in float32 at least."""
    if part.device.type == "cpu" and part.element_size() < 4:
        # What batch normalisation counts with: several times as fast, and adds up row after row in the float32 it is given,
        # which costs half precision nothing, and float32 a digit.
        wide = part.new_zeros(part.shape[1], dtype=torch.float32)
        return torch.batch_norm_update_stats(part, wide, wide.clone(), 0.0)
    # Any value near the mean: squares of large numbers would lose the small ones' digits.
    centre = at_least_float32(part[0])
    part = part - centre
    mean = part.mean(0)
    return centre + mean, part.square_().mean(0) - mean**2


def _over_group(values, groups):
    """The mean over each group of channels, for each channel."""
    return values.view(groups, -1).mean(1, keepdim=True).expand(groups, len(values) // groups).flatten()
