"""Resized images and labels in two large files, so that reading an episode decodes nothing.

`python -m hsnet.prepare NAME --cache 400` builds the cache in the benchmark's folder, `cache-400/`:

    images.uint8   every listed image, RGB, size × size × 3 bytes, one after the other
    labels.uint8   its labels, size × size bytes
    index.json     the names in that order, and where the masks came from

Pixels are those of the uncached path. A benchmark that is read at this size takes it without being asked.
"""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from .base import SPLITS

IMAGES, LABELS, INDEX = "images.uint8", "labels.uint8", "index.json"


class Cache:
    """Reads the cache of a benchmark at this size, which `build_cache` has written.

    Raises:
        ValueError: files that are not as long as the index says, or a cache of other masks than the benchmark's.
    """

    def __init__(self, benchmark, size: int):
        self.folder, self.size = cache_folder(benchmark, size), size
        index, masks = json.loads((self.folder / INDEX).read_text()), _masks_of(benchmark)
        again = f"delete that folder and build it again with `python -m hsnet.prepare … --cache {size}`"
        skipped = index.get("skipped", ())  # of caches that an earlier version built
        self._places = {name: i for i, name in enumerate(index["names"]) if name not in skipped}
        self._bytes = {IMAGES: 3 * size**2, LABELS: size**2}  # of one image
        for file, each in self._bytes.items():
            path, expected = self.folder / file, len(index["names"]) * each
            if not path.exists() or path.stat().st_size != expected:
                raise ValueError(f"{path} no longer has its {expected:,} bytes: {again}")
        if index["source"] != masks:
            raise ValueError(
                f"{self.folder} was built from the masks {index['source']}; the present masks are {masks}: {again}"
            )

    @classmethod
    def of(cls, benchmark, size: int) -> "Cache | None":
        """The cache of a benchmark at this size, if it has one. Raises as `Cache` does."""
        return cls(benchmark, size) if (cache_folder(benchmark, size) / INDEX).exists() else None

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> tuple[UInt8[Tensor, "3 s s"], UInt8[Tensor, "s s"]]:
        """An image and its labels."""
        place, side = self._places[name], self.size
        image, labels = (
            torch.from_numpy(np.fromfile(self.folder / file, np.uint8, each, offset=place * each))
            for file, each in self._bytes.items()
        )
        return image.view(side, side, 3).permute(2, 0, 1), labels.view(side, side)


def cache_folder(benchmark, size: int) -> Path:
    """The folder of a benchmark's cache of this size."""
    return benchmark.root / f"cache-{size}"


def build_cache(benchmark, size: int) -> Path:
    """Write the cache, unless it is there; returns its folder.

    The files grow in `cache-SIZE.tmp`, which is renamed when they are complete; an interrupted call starts again.

    Args:
        benchmark: a `ListedBenchmark` with maps of labels.

    Raises:
        FileNotFoundError, UnreadableFileError: an image or a mask that is not there or cannot be read.
        ValueError: a benchmark without maps of labels, or a cache of other masks.
    """
    if not benchmark.cacheable:
        raise ValueError(f"{benchmark.name} needs no cache: its images are drawn, not read")
    folder = cache_folder(benchmark, size)
    if Cache.of(benchmark, size) is not None:
        return folder
    for fold in range(benchmark.folds):
        for split in SPLITS:
            benchmark.check(fold, split)
    names, growing = benchmark.names(), folder.with_name(folder.name + ".tmp")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    with ThreadPoolExecutor() as pool, (growing / IMAGES).open("wb") as images, (growing / LABELS).open("wb") as labels:
        for start in tqdm(range(0, len(names), 64), f"{folder.name} of {benchmark.name}", unit="64 images"):
            read = pool.map(lambda name: benchmark.read_labelled_square(name, size), names[start : start + 64])
            for image, label_map in read:  # so many in memory at most
                images.write(image.permute(1, 2, 0).numpy().tobytes())
                labels.write(label_map.numpy().tobytes())
    (growing / INDEX).write_text(json.dumps({"size": size, "source": _masks_of(benchmark), "names": names}))
    growing.rename(folder)
    return folder


def _masks_of(benchmark):
    """Whose masks they are: two benchmarks may share images, and a cache."""
    return {key: value for key, value in benchmark.source().items() if key in ("source", "crowd")}
