"""The data sets: classes, folds, where files lie, which pixels count. A benchmark is one module here, and a name in the import below."""

from pathlib import Path

from . import coco, emoji, folder, fss, pascal, shapes  # noqa: F401 - importing a module registers its benchmarks
from .base import BENCHMARKS, REMOVED, Benchmark, Episode, UnreadableFileError
from .resize import Sample, Square

__all__ = ["BENCHMARKS", "REMOVED", "Benchmark", "Episode", "Sample", "Square", "UnreadableFileError", "load_benchmark"]


def load_benchmark(
    name: str, *, size: int, root: str | Path = "", protocol: str = "official", novel_images: str = "keep", **options
) -> Benchmark:
    """The benchmark called `name`, opened.

    Args:
        size, root, novel_images: see `Benchmark`.
        options: of benchmarks that have some, see `Folder`; those that are empty are as if not given.
        protocol: the rule of its episodes, "official" or "strict".

    Raises:
        ValueError: an unknown name, with those that exist, or a protocol that it does not have.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}: " + REMOVED.get(name, f"choose one of {', '.join(BENCHMARKS)}"))
    given = {option: value for option, value in options.items() if value}
    if unknown := set(given) - set(BENCHMARKS[name].options):
        raise ValueError(f"--{min(unknown).replace('_', '-')} does not apply to {name}: remove it")
    return BENCHMARKS[name].open(size=size, root=root, novel_images=novel_images, **given).under(protocol)
