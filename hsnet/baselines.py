"""Baselines, with which scores on the same episodes are compared."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .episodes import Batch


def all_foreground(batch: Batch) -> Bool[Tensor, "b h w"]:
    """Every pixel is foreground: the chance level."""
    return batch.query_mask | True


def any_object(batch: Batch) -> Bool[Tensor, "b h w"]:
    """Every pixel of any annotated object: the score of perfect outlines that ignore the support."""
    return batch.query_objects


class Prototypes:
    """Masked-average prototypes on the frozen features, without learned parameters.

    The prototype of a class is the mean feature of the supports under their masks. A query pixel is foreground where
    its cosine with the prototype exceeds a threshold, or where it exceeds the cosine with the background's prototype.
    Which level of the pyramid and which of these 20 rules is best is chosen on training episodes: `observe` them, then
    `predict`.
    """

    THRESHOLDS = torch.linspace(0.05, 0.95, 19)

    def __init__(self):
        self._iou = 0.0  # per level and rule, summed over the observed episodes
        self._sides: list[int] = []

    def observe(
        self, query_levels, support_levels, support_mask: Bool[Tensor, "b k h w"], truth: Bool[Tensor, "b h w"]
    ) -> None:
        """Score every level and rule on a batch of training episodes."""
        ious = []
        # A level at a time: the maps of all at once are the most memory a small training takes.
        for pair in zip(query_levels, support_levels, strict=True):
            masks = self._masks(*pair, support_mask, truth.shape[-2:])
            union = (masks | truth).sum((-2, -1)).clamp(min=1)
            ious.append(((masks & truth).sum((-2, -1)) / union).sum(-1))
        self._iou = self._iou + torch.stack(ious)
        self._sides = [level[0].shape[-1] for level in query_levels]

    def predict(
        self, query_levels, support_levels, support_mask: Bool[Tensor, "b k h w"], size: tuple[int, int]
    ) -> Bool[Tensor, "b h2 w2"]:
        """Masks by the best level and rule.

        Raises:
            ValueError: nothing was observed.
        """
        level, rule = self._best()
        return self._masks(query_levels[level], support_levels[level], support_mask, size)[rule]

    @classmethod
    def contrast(
        cls, query_levels, support_levels, support_mask: Bool[Tensor, "b k h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b h2 w2"]:
        """The rule that needs no choice, as scores: the cosine with the foreground's prototype minus that with the
        background's, at the coarsest level. A pixel is foreground above 0."""
        maps = _maps(query_levels[-1], support_levels[-1], support_mask, size)
        return maps[:, 0] - maps[:, 1]

    def rule(self) -> str:
        """The best level and rule, in words."""
        level, rule = self._best()
        words = "foreground against background"
        if rule < len(self.THRESHOLDS):
            words = f"cosine above {self.THRESHOLDS[rule]:.2f}"
        return f"{self._sides[level]} × {self._sides[level]} level, {words}"

    def _best(self):
        if not self._sides:
            raise ValueError("no episode was observed: call observe with training episodes first")
        return divmod(int(self._iou.argmax()), self._iou.shape[1])

    def _masks(self, query_level, support_level, support_mask, size) -> Bool[Tensor, "rule b h w"]:
        maps = _maps(query_level, support_level, support_mask, size)
        thresholds = self.THRESHOLDS.to(maps.device).view(-1, 1, 1, 1)
        return torch.cat([maps[:, 0] > thresholds, (maps[:, 0] > maps[:, 1])[None]])


def with_prior(
    probability: Float[Tensor, "*b h w"], contrast: Float[Tensor, "*b h w"], weight: float
) -> Float[Tensor, "*b h w"]:
    """HSNet's mean probability with the prototypes' map as a prior: logit(p) + weight · contrast, as a probability.

    This goes beyond the paper: the prototypes average whole objects, where HSNet compares positions, and they err on other
    images. The weight is chosen on validation episodes (`thresholds.choose_thresholds`); with 0 nothing changes.

    Args:
        contrast: of `Prototypes.contrast`, from all supports at once.
    """
    return torch.sigmoid(torch.logit(probability, eps=1e-4) + weight * contrast) if weight else probability


def _maps(query_level, support_level, support_mask, size) -> Float[Tensor, "b 2 h w"]:
    """Cosines with the foreground's and with the background's prototype, averaged over the level's layers."""
    b = len(support_mask)
    share = F.adaptive_avg_pool2d(support_mask.flatten(0, 1).float()[:, None], support_level[0].shape[-2:])
    foreground = background = 0.0
    for query, support in zip(query_level, support_level, strict=True):
        foreground = foreground + _cosine(query, support, share, b) / len(query_level)
        background = background + _cosine(query, support, 1 - share, b) / len(query_level)
    return F.interpolate(torch.stack([foreground, background], 1), tuple(size), mode="bilinear", align_corners=True)


def _cosine(
    query: Float[Tensor, "b c h w"],
    support: Float[Tensor, "bk c hs ws"],
    weight: Float[Tensor, "bk 1 hs ws"],
    b: int,
) -> Float[Tensor, "b h w"]:
    """Cosine of each query position with the weighted mean of the K supports' features."""
    prototype = (support * weight).unflatten(0, (b, -1)).sum((1, 3, 4))  # b c; its length does not matter
    return torch.einsum("bchw,bc->bhw", F.normalize(query, dim=1), F.normalize(prototype, dim=1))
