"""The same mathematics written the obvious way, to be read, tested against and timed against."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


def convolve_center_pivot(conv: nn.Module, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b d hq wq h2 w2"]:
    """Equation (5) for a `CenterPivotConv4d`: permute, copy, reshape, convolve in 2D, for either half, and add."""
    b, c, hq, wq, hs, ws = x.shape
    pruned = x[..., :: conv.stride, :: conv.stride].contiguous()
    h2, w2 = pruned.shape[-2:]
    query = pruned.permute(0, 4, 5, 1, 2, 3).contiguous().view(-1, c, hq, wq)
    query = conv.query(query).view(b, h2, w2, -1, hq, wq).permute(0, 3, 4, 5, 1, 2).contiguous()
    support = x.permute(0, 2, 3, 1, 4, 5).contiguous().view(-1, c, hs, ws)
    support = conv.support(support).view(b, hq, wq, -1, h2, w2).permute(0, 3, 1, 2, 4, 5).contiguous()
    return query + support


def run(layers: Iterable[nn.Module], x: Float[Tensor, "b _c hq wq _hs _ws"]) -> Float[Tensor, "b _d hq wq _h2 _w2"]:
    """The layers of a squeezing or mixing block, one after the other, with `convolve_center_pivot`."""
    for layer in layers:
        if isinstance(layer, nn.GroupNorm):
            x = F.relu(F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps))
        elif not isinstance(layer, nn.Identity):
            x = convolve_center_pivot(layer, x)
    return x


def mix(encoder: nn.Module, squeezed: list[Float[Tensor, "b 128 _hq _wq _hs _ws"]]) -> Float[Tensor, "b 128 hq wq"]:
    """The mixing blocks of a `PyramidEncoder` and the mean over the support dims."""
    mixed = squeezed[-1]
    for block, fine in zip(reversed(encoder.mixing), reversed(squeezed[:-1]), strict=True):
        b, c, h, w, hs, ws = mixed.shape
        size = fine.shape[2:4]
        mixed = mixed.permute(0, 4, 5, 1, 2, 3).contiguous().view(-1, c, h, w)
        mixed = F.interpolate(mixed, size, mode="bilinear", align_corners=True)
        mixed = mixed.view(b, hs, ws, c, *size).permute(0, 3, 4, 5, 1, 2).contiguous()
        mixed = run(block.layers, fine + mixed)
    return mixed.mean(dim=(4, 5))


@torch.no_grad()
def predict(model: nn.Module, query, support, support_mask) -> Bool[Tensor, "b h w"]:
    """K-shot as K whole network passes, the query's features extracted anew in each."""
    votes = sum(
        forward(model, query, s, m).argmax(1) for s, m in zip(support.unbind(1), support_mask.unbind(1), strict=True)
    )
    return votes / votes.flatten(1).amax(dim=1).clamp(min=1).view(-1, 1, 1) >= 0.5


def forward(model: nn.Module, query, support, support_mask) -> Float[Tensor, "b 2 h w"]:
    """One pass of a center-pivot `HSNet`."""
    mask = support_mask if model.settings["mask_support"] else None
    stacks = pyramid(model.backbone(query), model.backbone(support), mask)
    squeezed = [run(block.layers, x) for block, x in zip(model.encoder.squeezing, stacks, strict=True)]
    logits = model.decoder(mix(model.encoder, squeezed))
    return F.interpolate(logits, query.shape[-2:], mode="bilinear", align_corners=True)


def pyramid(query_levels, support_levels, support_mask) -> list[Float[Tensor, "b _l _hq _wq _hs _ws"]]:
    """Equations (1) and (2), layer by layer: each correlation computed by itself, then copied into its level's stack."""
    stacks = []
    for query_level, support_level in zip(query_levels, support_levels, strict=True):
        stack = []
        for q, s in zip(query_level, support_level, strict=True):
            if support_mask is not None:
                mask = support_mask[:, None].to(s.dtype)
                s = s * F.interpolate(mask, s.shape[2:], mode="bilinear", align_corners=True)
            q = q / (q.norm(dim=1, p=2, keepdim=True) + 1e-5)
            s = s / (s.norm(dim=1, p=2, keepdim=True) + 1e-5)
            cosine = torch.bmm(q.flatten(2).transpose(1, 2), s.flatten(2)).clamp(min=0)
            stack.append(cosine.view(-1, *q.shape[2:], *s.shape[2:]))
        stacks.append(torch.stack(stack, dim=1).contiguous())
    return stacks
