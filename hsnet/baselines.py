"""What a score has to be compared with, on the same episodes."""

from jaxtyping import Bool
from torch import Tensor

from .episodes import Batch


def all_foreground(batch: Batch) -> Bool[Tensor, "b h w"]:
    """Every pixel is foreground: the score of knowing nothing."""
    return batch.query_mask | True


def any_object(batch: Batch) -> Bool[Tensor, "b h w"]:
    """Every pixel of any annotated object: what perfect saliency could score without looking at the support."""
    return batch.query_objects
