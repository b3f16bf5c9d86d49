"""The data sets: classes, folds, where files lie, which pixels count."""

from .base import Benchmark, Episode, Sample
from .coco import Coco
from .emoji import Emoji
from .shapes import Shapes

__all__ = ["BENCHMARKS", "Benchmark", "Episode", "Sample", "load_benchmark"]

BENCHMARKS: dict[str, type[Benchmark]] = {"emoji": Emoji, "shapes": Shapes, "coco": Coco}


def load_benchmark(name: str, *, size: int, root: str = "") -> Benchmark:
    """The benchmark called `name`.

    Args:
        size: side of the scenes of drawn benchmarks, in pixels; photographs keep their own size.
        root: folder of the files of the others; empty for the usual one.

    Raises:
        ValueError: an unknown name, with those that exist.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](root) if name == "coco" else BENCHMARKS[name](size)
