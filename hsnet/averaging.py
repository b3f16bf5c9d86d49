"""The maps of the rule "mean": averages over supports and sizes; with `HSNet.zoom`, of windows around the object. Beyond the paper."""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from . import fast
from .baselines import Prototypes, with_prior
from .config import Config
from .episodes import Batch
from .inputs import squeezed_size
from .model import HSNet
from .windows import Box, resized, window

ENLARGED = 1.4  # the second size, where it leaves the squeezed support as many positions as in training
SUPPORT_MARGIN, QUERY_MARGIN = 1.6, 1.25  # of windows, see `windows.window`
PRIOR = 4.0  # weight of the prototypes' map where the query's window is chosen
FOUND = 0.6  # the window contains the positions above this share of the highest probability

# For each size: its side, the levels of b · k supports, and their masks (b k side side).
Supports = list[tuple[int, list[list[Tensor]], Tensor]]


def features_of(model: HSNet, batch: Batch) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The levels of the queries, and of all supports in one batch."""
    images = (model.backbone.normalize(x) for x in (batch.query, batch.support.flatten(0, 1)))
    return fast.features_of(model.backbone, *images)


def zooms(model: HSNet, config: Config) -> bool:
    """Whether a run is scored with windows: by the rule "mean" at the size of its training, as `Segmenter` does."""
    return model.zoom and config.rule == "mean" and config.size == model.training_size


@torch.no_grad()
def prepare_supports(
    model: HSNet, images: UInt8[Tensor, "b k 3 h w"], masks: Bool[Tensor, "b k h w"], side: int, zoom: bool
) -> Supports:
    """The features of supports at one size, or with `zoom` of the windows around their objects at two."""
    larger = round(ENLARGED * side)
    sides = (side, larger) if zoom and squeezed_size(larger) == squeezed_size(side) else (side,)
    whole = 0, 0, *masks.shape[-2:]
    boxes = [window(mask, SUPPORT_MARGIN) if zoom else whole for mask in masks.flatten(0, 1)]

    def cut(pictures, side):
        return torch.cat([resized(x[None], box, side) for x, box in zip(pictures.flatten(0, 1), boxes, strict=True)])

    levels = [_features(model, cut(images, side)) for side in sides]
    shown = [cut(masks[:, :, None], side).unflatten(0, masks.shape[:2])[:, :, 0] for side in sides]
    return list(zip(sides, levels, shown, strict=True))


@torch.no_grad()
def mean_maps(
    model: HSNet, query: UInt8[Tensor, "b 3 h w"], supports: Supports, size: tuple[int, int], zoom: bool
) -> tuple[Float[Tensor, "b k h2 w2"], Float[Tensor, "b h2 w2"]]:
    """The foreground's probability from each support, and `Prototypes.contrast`; both averaged over the supports' sizes.

    With `zoom`, the query is processed a second time: the window around what was found, at the first size. Its values replace
    those of the first pass.

    Args:
        size: height and width of the maps.
    """
    found = [_maps(model, query, *of_side, size) for of_side in supports]
    probability, contrast = (sum(maps) / len(found) for maps in zip(*found, strict=True))
    first = with_prior(probability.mean(1), contrast, PRIOR)
    for i, one in enumerate(first if zoom else ()):
        box = top, left, height, width = window(one > FOUND * one.max(), QUERY_MARGIN)
        if (height, width) == size:
            continue
        side, levels, masks = supports[0]
        own = slice(i * masks.shape[1], (i + 1) * masks.shape[1])
        levels = [[feature[own] for feature in level] for level in levels]
        cut = resized(query[i : i + 1], _scaled(box, size, query.shape[-2:]), side)
        maps = _maps(model, cut, side, levels, masks[i : i + 1], (height, width))
        for whole, part in zip((probability, contrast), maps, strict=True):
            whole[i, ..., top : top + height, left : left + width] = part[0]
    return probability, contrast


def _maps(model, query, side, levels, masks, size):
    """The probability from each support, and the contrast, of the query as squares of one side."""
    query_levels = _features(model, resized(query, (0, 0, *query.shape[-2:]), side))
    logits = model.logits_from_features(query_levels, levels, masks, size)
    # Clones: a part of the softmax would keep all of it, of each support.
    maps = [of_support.float().softmax(dim=1)[:, 1].clone() for of_support in logits]
    return torch.stack(maps, dim=1), Prototypes.contrast(query_levels, levels, masks, size).float()


def _features(model, images):
    return model.backbone(model.backbone.normalize(images))


def _scaled(box: Box, size, other) -> Box:
    """A box of an image of one size in the same image of another."""
    top, left, height, width = box
    spans = (top, top + height), (left, left + width)
    ends = [[round(end * b / a) for end in span] for span, a, b in zip(spans, size, other, strict=True)]
    (top, bottom), (left, right) = ends
    return top, left, bottom - top, right - left
