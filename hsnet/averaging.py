"""The maps of the rule "mean": averages over supports, and over scales of the images."""

import torch
from jaxtyping import Float
from torch import Tensor

from . import fast
from .baselines import Prototypes
from .episodes import Batch
from .model import HSNet


def features_of(model: HSNet, batch: Batch) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The levels of the queries, and of all supports in one batch."""
    images = (model.backbone.normalize(x) for x in (batch.query, batch.support.flatten(0, 1)))
    return fast.features_of(model.backbone, *images)


@torch.no_grad()
def mean_maps(
    model: HSNet, batch: Batch, size: tuple[int, int], scales: tuple[float, ...], levels: tuple
) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """The foreground's probability, averaged over supports and scales, and `Prototypes.contrast`, averaged over scales.

    Args:
        size: height and width of the maps.
        scales: of the images, see `Batch.enlarged`; the first is 1.
        levels: what `features_of` returns for the batch as it is.
    """
    probability = contrast = 0.0
    for scale in scales:
        one = batch.enlarged(scale)
        query, support = levels if scale == 1 else features_of(model, one)
        for logits in model.logits_from_features(query, support, one.support_mask, size):
            probability = probability + logits.float().softmax(dim=1)[:, 1]
        contrast = contrast + Prototypes.contrast(query, support, one.support_mask, size).float()
    return probability / (len(scales) * batch.support_mask.shape[1]), contrast / len(scales)
