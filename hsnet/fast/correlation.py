"""Correlation fused with the first squeezing convolution: the hypercorrelation is never stored as a whole.

`correlation.hypercorrelation_pyramid` followed by `conv4d.CenterPivotConv4d` is the definition. This module computes the same
result with less work and less memory, for three reasons:

1. **The mask.** The correlations of a support position outside the mask are zero. Only the positions inside are multiplied; only
   the box around them is convolved, and where the convolution sees nothing of the box, its result is its bias.
2. **Slices.** Equation (5) is a sum of two branches. The one over the support dims reads one query position at a time, so
   query positions go slice by slice. The one over the query dims reads one support position at a time, and only every
   stride-th one, so it is given correlations of those alone. Each slice is freed after its convolution.
3. **No stacks.** The matrix product of each layer is written where the convolution will read it.

Training keeps the slices for the backward pass where they are small, and else computes them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..conv4d import CenterPivotConv4d
from ..correlation import resize_mask, unit_vectors
from .convolution import at_least_float32, needs_float32
from .matmul import matmul

# Correlations held at a time, in bytes. Few enough to stay in a processor's cache until they are convolved: of the powers
# of two between 2²⁰ and 2²⁴ this was among the fastest on a processor with 32 MB of it.
SLICE = 2**23
# In training, the correlations of one episode's level that may be kept for the backward pass, in bytes.
KEEP = 2**27


@dataclass
class SupportLevel:
    """The features of one support image at one level, inside its mask, as unit vectors.

    Attributes:
        layers: one (positions, channels) tensor a feature layer; the positions inside the mask, row by row.
        inside: which positions of the box are inside the mask, on the CPU. The box reaches as far as the convolution sees.
        top, left: where the box begins; multiples of the convolution's stride.
        size: height and width of the whole level.
    """

    layers: list[Float[Tensor, "positions _c"]]
    inside: Bool[Tensor, "hb wb"]
    top: int
    left: int
    size: tuple[int, int]


Levels = list[list[Tensor]]


def unit_levels(levels: Levels) -> Levels:
    """Each feature as unit vectors. The lists are changed: old and new features are not held side by side."""
    for level in levels:
        for i in range(len(level)):
            level[i] = unit_vectors(level[i])
    return levels


def cut_supports(model: nn.Module, levels: Levels, mask: Tensor) -> list[list[SupportLevel]]:
    """`cut` for every level of an `HSNet`: what its encoder needs of a batch of supports."""
    mask = mask if model.settings["mask_support"] else None
    return [cut(f, mask, block.layers[0]) for f, block in zip(levels, model.encoder.squeezing, strict=True)]


def encode(
    encoder: nn.Module, query_levels: Levels, supports: list[list[SupportLevel]]
) -> Float[Tensor, "b 128 hq wq"]:
    """The context of a `PyramidEncoder`, without the pyramid. For frozen features and center-pivot kernels.

    Args:
        query_levels: unit vectors.
        supports: of `cut_supports`.
    """
    squeezed = []
    for block, query, support in zip(encoder.squeezing, query_levels, supports, strict=True):

        def squeeze(query, support, block=block):
            first = correlate_and_convolve(block.layers[0], query, support, keep=not encoder.recompute)
            return block.after_first(first)

        squeezed.append(encoder.squeeze(squeeze, query, support))
    return encoder.mix(squeezed)


def cut(
    level: list[Float[Tensor, "b _c hs ws"]],
    mask: Bool[Tensor, "b H W"] | Float[Tensor, "b H W"] | None,
    conv: CenterPivotConv4d,
) -> list[SupportLevel]:
    """Mask the features of one level, equation (1), and cut out of each support of a batch what `conv` needs.

    Args:
        level: features, not masked yet.
        mask: True or 1 on the object; None, and the support's background takes part.
        conv: the first convolution of the level's squeezing block.

    Returns:
        One `SupportLevel` for each item of the batch.
    """
    b, _, hs, ws = level[0].shape
    small = level[0].new_ones(b, 1, hs, ws) if mask is None else resize_mask(mask.to(level[0].dtype), (hs, ws))
    everywhere = (small[:, 0] > 0).cpu()
    supports = []
    for i, inside in enumerate(everywhere):
        top, bottom = _span(inside.any(1).tolist(), conv.kernel_size, conv.stride)
        left, right = _span(inside.any(0).tolist(), conv.kernel_size, conv.stride)
        box = slice(i, i + 1), slice(None), slice(top, bottom), slice(left, right)
        inside = inside[top:bottom, left:right]
        chosen = inside.flatten().nonzero()[:, 0].to(small.device)
        layers = [unit_vectors(f[box] * small[box])[0].flatten(1).mT[chosen] for f in level]
        supports.append(SupportLevel(layers, inside, top, left, (hs, ws)))
    return supports


def _span(inside: list[bool], kernel_size: int, stride: int) -> tuple[int, int]:
    """Begin and end, along one dim, of what a convolution must be given so that its output is complete.

    It begins at a multiple of the stride, holds all positions inside, and reaches to the last output that sees one.
    """
    if not any(inside):
        return 0, 0
    first, last = inside.index(True), len(inside) - 1 - inside[::-1].index(True)
    reach = kernel_size // 2
    begin = min(max(0, -(-(first - reach) // stride)), first // stride) * stride
    end = max(last, min((last + reach) // stride * stride, len(inside) - 1)) + 1
    return begin, end


def correlate_and_convolve(
    conv: CenterPivotConv4d,
    query: list[Float[Tensor, "b _c hq wq"]],
    supports: list[SupportLevel],
    keep: bool = True,
) -> Float[Tensor, "b d hq wq h2 w2"]:
    """`conv` of the hypercorrelation of one level; see the module's docstring.

    Gradients reach the weights of `conv`, not the features: those of a frozen backbone need none.

    Args:
        query: unit vectors of each layer, see `correlation.unit_vectors`.
        supports: of `cut` with the same `conv`, one for each item of the batch.
        keep: small correlations for the backward pass; without, all are computed again.

    Returns:
        The same as `conv(hypercorrelation)`, channels innermost in memory.
    """
    device, dtype = query[0].device.type, query[0].dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    query = [q.to(dtype) for q in query]
    supports = [replace(s, layers=[x.to(dtype) for x in s.layers]) for s in supports]
    bias = conv.query.bias + conv.support.bias
    rows = _CorrelateAndConvolve.apply(
        conv.query.weight, conv.support.weight, bias, conv.stride, query, supports, KEEP if keep else 0
    )  # b (hq wq) h2 w2 d
    return rows.unflatten(1, query[0].shape[2:]).movedim(-1, 1)


class _CorrelateAndConvolve(torch.autograd.Function):
    """The weights in their own precision, in which their gradients are added up; everything else in that of the features."""

    @staticmethod
    def forward(ctx, query_weight, support_weight, bias, stride, query, supports, most):
        ctx.save_for_backward(query_weight, support_weight)
        ctx.stride, ctx.query, ctx.supports, ctx.kept = stride, query, supports, {}
        with torch.autocast(query[0].device.type, enabled=False):
            return _forward(ctx, query_weight, support_weight, bias, stride, query, supports, most)

    @staticmethod
    def backward(ctx, gradient):
        with torch.autocast(gradient.device.type, enabled=False):
            of_query, of_support = _backward(ctx, gradient)
        return of_query, of_support, gradient.sum(dim=(0, 1, 2, 3), dtype=of_query.dtype), None, None, None, None


def _forward(ctx, query_weight, support_weight, bias, stride, query, supports, most):
    b, (hq, wq), (hs, ws) = len(supports), query[0].shape[2:], supports[0].size
    h2, w2 = -(-hs // stride), -(-ws // stride)
    result = bias.to(query[0].dtype).repeat(b, hq * wq, h2, w2, 1)
    for i, support in enumerate(supports):
        box = _box_of_output(result[i], support, stride)
        size = hq * wq * len(query) * support.inside.numel() * query[0].element_size()
        keep = ctx.kept.setdefault(i, ([], [])) if any(ctx.needs_input_grad) and size <= most else None
        # Channels come out of the convolutions as planes. They are brought innermost by copies, and added afterwards:
        # additions that transpose take several times as long.
        for rows, correlation in _over_support(query, support, i, stride):
            weight, pad = support_weight.to(correlation.dtype), support_weight.shape[-1] // 2
            convolved = F.conv2d(correlation, weight, bias.to(correlation.dtype), stride, pad)
            box[rows] = convolved.permute(0, 2, 3, 1)
            if keep:
                keep[0].append((rows, correlation))
        for outputs, correlation in _over_query(query, support, i, stride):
            weight, pad = query_weight.to(correlation.dtype), query_weight.shape[-1] // 2
            convolved = F.conv2d(correlation, weight, None, 1, pad)
            convolved = convolved.flatten(0, 1).flatten(1).mT.contiguous().view(hq * wq, len(outputs), -1)
            for begin, end in _runs([row * (w2 + 1) + column for row, column in outputs]):  # none beyond its row
                row, column = outputs[begin]
                box[:, row, column : column + end - begin] += convolved[:, begin:end]
            if keep:
                keep[1].append((outputs, correlation))
    return result


def _backward(ctx, gradient):
    """The gradients of the weights of the two branches."""
    query_weight, support_weight = ctx.saved_tensors
    stride, (hq, wq) = ctx.stride, ctx.query[0].shape[2:]
    of_query, of_support = torch.zeros_like(query_weight), torch.zeros_like(support_weight)
    for i, support in enumerate(ctx.supports):
        box = _box_of_output(gradient[i], support, stride)
        over_support, over_query = ctx.kept.pop(i, None) or (
            _over_support(ctx.query, support, i, stride),
            _over_query(ctx.query, support, i, stride),
        )
        for rows, correlation in over_support:
            part = box[rows].permute(0, 3, 1, 2).to(correlation.dtype)
            pad = support_weight.shape[-1] // 2
            of_support += nn.grad.conv2d_weight(correlation, support_weight.shape, part, stride, pad)
        for outputs, correlation in over_query:
            part = torch.stack([box[:, row, column].mT.unflatten(1, (hq, wq)) for row, column in outputs])
            of_query += nn.grad.conv2d_weight(correlation, query_weight.shape, part, 1, query_weight.shape[-1] // 2)
    return of_query, of_support


def _box_of_output(whole: Tensor, support: SupportLevel, stride: int) -> Tensor:
    """The part of a (hq·wq, h2, w2, d) tensor that the support's box reaches."""
    height, width = support.inside.shape
    top, left = support.top // stride, support.left // stride
    return whole[:, top : top - (-height // stride), left : left - (-width // stride)]


def _over_support(query, support, item, stride) -> Iterator[tuple[slice, Float[Tensor, "n l hb wb"]]]:
    """Correlations of slices of query positions with the box, in a precision to be convolved in; 0 outside the mask."""
    queries = [q[item].flatten(1).mT for q in query]
    chosen = support.inside.flatten().nonzero()[:, 0].tolist()
    for rows in _slices(len(queries[0]), len(query) * support.inside.numel() * query[0].element_size()):
        correlation = _correlations([q[rows] for q in queries], support.layers)
        if len(chosen) < support.inside.numel():
            box = correlation.new_zeros(*correlation.shape[:2], support.inside.numel())
            for begin, end in _runs(chosen):  # neighbours are copied together
                box[..., chosen[begin] : chosen[begin] + end - begin] = correlation[..., begin:end]
            correlation = box
        correlation = correlation.unflatten(2, support.inside.shape)
        yield rows, at_least_float32(correlation) if needs_float32(correlation, stride) else correlation


def _over_query(query, support, item, stride) -> Iterator[tuple[list, Float[Tensor, "n l hq wq"]]]:
    """Correlations of the support positions inside the mask that every stride-th step meets, with the whole query.

    Yields the positions in the convolution's output, and the correlations, in slices.
    """
    queries = [q[item].flatten(1).mT for q in query]
    number = support.inside.flatten().cumsum(0).view_as(support.inside) - 1  # place among the positions inside
    outputs = support.inside[::stride, ::stride].nonzero().tolist()
    places = number[::stride, ::stride][support.inside[::stride, ::stride]].to(queries[0].device)
    for part in _slices(len(outputs), len(query) * len(queries[0]) * query[0].element_size()):
        correlation = _correlations([s[places[part]] for s in support.layers], queries)
        yield outputs[part], correlation.unflatten(2, query[0].shape[2:])


def _correlations(a: list[Float[Tensor, "n _c"]], b: list[Float[Tensor, "m _c"]]) -> Float[Tensor, "n l m"]:
    """Equation (2) for two lists of unit vectors, one pair of tensors a layer."""
    result = a[0].new_empty(len(a[0]), len(a), len(b[0]))
    for layer, (x, y) in enumerate(zip(a, b, strict=True)):
        torch.clamp(matmul(x, y), min=0, out=result[:, layer])
    return result


def _slices(count: int, bytes_each: int) -> Iterator[slice]:
    step = max(1, SLICE // max(1, bytes_each))
    for begin in range(0, count if bytes_each else 0, step):
        yield slice(begin, min(begin + step, count))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Begin and end, in a rising list, of each stretch without a gap."""
    begin = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield begin, i
            begin = i
