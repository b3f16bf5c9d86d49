"""The one choice that follows from the machine: many small operations, or few large ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_few = False  # set by `few_operations`


def for_processor(device: torch.device) -> bool:
    """Whether a computation on `device` is cut into small operations, whose data stay in a processor's cache.

    A GPU takes longer to start a small operation than to compute it, and the compiler fuses the operations of the figure
    itself: both get the figure's own operations.
    """
    return device.type == "cpu" and not (_few or torch.compiler.is_dynamo_compiling())


@contextmanager
def few_operations() -> Iterator[None]:
    """Within, a processor computes as a GPU does: to count its operations and to compare results without one."""
    global _few
    before, _few = _few, True
    try:
        yield
    finally:
        _few = before
