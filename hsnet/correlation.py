"""Equations (1) and (2) of the paper: hide the support's background, then compare every position with every position."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .fast.machine import for_processor

# Added to each norm, as in the reference: a feature of zeros (a masked-out position) then has correlation 0, not NaN.
EPSILON = 1e-5


def mask_features(
    levels: list[list[Float[Tensor, "b _c _h _w"]]], mask: Bool[Tensor, "b H W"] | Float[Tensor, "b H W"]
) -> list[list[Float[Tensor, "b _c _h _w"]]]:
    """Support feature masking, equation (1) of the paper: each feature times the mask resized to the feature's height and width.

    Args:
        levels: features per level and layer.
        mask: True or 1 on the object; any size.

    Returns:
        New lists of the same shapes. As in the reference, the resize is bilinear with aligned corners. It samples
        single points, so an object smaller than their distance can vanish at a coarse level.
    """
    masked = []
    for level in levels:
        small = resize_mask(mask.to(level[0].dtype), level[0].shape[-2:])
        masked.append([feature * small for feature in level])
    return masked


def resize_mask(mask: Float[Tensor, "b H W"], size: tuple[int, int]) -> Float[Tensor, "b 1 h w"]:
    """The function ζ of the paper's equation (1): bilinear with aligned corners."""
    return F.interpolate(mask[:, None], size, mode="bilinear", align_corners=True)


def correlate(query: Float[Tensor, "b c hq wq"], support: Float[Tensor, "b c hs ws"]) -> Float[Tensor, "b hq wq hs ws"]:
    """4D correlation, equation (2) of the paper: the cosines between all query and all support positions, negative values set to 0.

    Returns:
        Values in [0, 1]. `[b, i, j, k, l]` compares query position (i, j) with support position (k, l).
    """
    cosine = unit_vectors(query).flatten(2).mT @ unit_vectors(support).flatten(2)  # b (hq wq) (hs ws)
    return cosine.relu_().view(-1, *query.shape[-2:], *support.shape[-2:])


def unit_vectors(feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each position's vector of channels divided by its norm: the dot product of two of them is their cosine."""
    return feature / (feature.norm(dim=1, keepdim=True) + EPSILON)


def hypercorrelation_pyramid(
    query_levels: list[list[Float[Tensor, "b _c _hq _wq"]]], support_levels: list[list[Float[Tensor, "b _c _hs _ws"]]]
) -> list[Float[Tensor, "b _l _hq _wq _hs _ws"]]:
    """The hypercorrelation of each level: the 4D correlations of its layers, stacked as channels.

    Query and support may differ in height and width; they must have the same layers.

    Returns:
        One tensor a level, in the order of the levels, shallow to deep within each; channels innermost in memory.
    """
    return [_hypercorrelation(q, s) for q, s in zip(query_levels, support_levels, strict=True)]


def _hypercorrelation(query, support):
    if for_processor(query[0].device) or len({feature.shape for feature in (*query, *support)}) > 1:
        return torch.stack([correlate(q, s) for q, s in zip(query, support, strict=True)], dim=-1).movedim(-1, 1)
    # On a GPU all layers at once, where their shapes are equal: the same values in a handful of operations.
    q, s = unit_vectors(torch.cat([*query, *support])).flatten(2).chunk(2)  # (l b) c (h w)
    layers = (q.mT @ s).relu_().view(len(query), -1, *query[0].shape[2:], *support[0].shape[2:])
    return layers.permute(1, 2, 3, 4, 5, 0).contiguous().movedim(-1, 1)
