"""The data sets: classes, folds, where files lie, which pixels count."""

from collections.abc import Callable

from ..config import Config
from .base import Benchmark, Episode, UnreadableFileError
from .cache import Cache
from .coco import open_coco
from .emoji import Emoji
from .emoji_photo import EmojiPhoto
from .fss import Fss
from .pascal import CocoToPascal, Pascal
from .resize import Sample, Square
from .shapes import Shapes

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Episode",
    "Sample",
    "Square",
    "UnreadableFileError",
    "benchmark_of",
    "load_benchmark",
]

_DRAWN: dict[str, Callable[..., Benchmark]] = {"emoji": Emoji, "emoji-photo": EmojiPhoto, "shapes": Shapes}
_PHOTOGRAPHS: dict[str, Callable[..., Benchmark]] = {
    "pascal": Pascal,
    "coco": open_coco,
    "fss": Fss,
    "coco-to-pascal": CocoToPascal,
}
BENCHMARKS = _DRAWN | _PHOTOGRAPHS


def load_benchmark(
    name: str, *, size: int, root: str = "", protocol: str = "official", novel_images: str = "keep"
) -> Benchmark:
    """The benchmark called `name`.

    Args:
        size: side of the scenes of drawn benchmarks, in pixels; of photographs, the side that a cache is looked for.
        root: folder of the files of photographs; empty for the usual one.
        protocol: the rule of its episodes, "official" or "strict".
        novel_images: whether to "keep" or "drop" training photographs that also show a held-out class.

    Raises:
        ValueError: an unknown name, with those that exist, or a protocol that it does not have.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    if name in _DRAWN:
        return _DRAWN[name](size).under(protocol)
    benchmark = _PHOTOGRAPHS[name](root, novel_images).under(protocol)
    if benchmark.cacheable:
        benchmark.cache = Cache.of(benchmark, size)
    return benchmark


def benchmark_of(config: Config) -> Benchmark:
    """The benchmark that a run's settings name. Raises as `load_benchmark` does."""
    return load_benchmark(
        config.benchmark,
        size=config.size,
        root=config.root,
        protocol=config.protocol,
        novel_images=config.novel_images,
    )
