"""How fast the loader reads: decoded from files, and from the cache."""

import os
import tempfile
import time

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..benchmarks import Episode
from ..benchmarks.cache import Cache, build_cache
from ..benchmarks.listed import BOUNDARY
from ..benchmarks.pascal import Pascal
from ..episodes import EpisodeDataset


class _Generated(Pascal):
    """A tree in PASCAL's layout: drawn pictures of VOC's usual 500 × 375 pixels, each of which shows every class."""

    NAMES = tuple(f"{i:06d}" for i in range(100))

    def write(self) -> None:
        rng = np.random.default_rng(0)
        labels = np.zeros((375, 500), np.uint8)
        labels[100:300, 120:400] = BOUNDARY
        labels[105:295, 125:395] = 1
        for folder in (self.image_path("x").parent, self.mask_path("x").parent):
            folder.mkdir(parents=True)
        for name in self.NAMES:
            # Smooth shapes and fine grain: JPEGs of about 100 kB, as VOC's are.
            smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((500, 375))
            pixels = np.clip(np.asarray(smooth) + rng.normal(0, 12, (375, 500, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(self.image_path(name), quality=90)
            Image.fromarray(labels).save(self.mask_path(name))

    def files(self) -> list[str]:
        return list(self.NAMES)

    def listed(self, part: str) -> list[tuple[str, int]]:
        return [(name, c) for name in self.NAMES for c in range(len(self.class_names))]


def measure_reading(size: int, episodes: int, workers: list[int]) -> dict:
    """Episodes a second that the loader gives, 1-shot, batches of 20: decoded from files, and from the cache.

    The files are in the system's memory: the disk is not measured.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        benchmark = _Generated(root=folder)
        benchmark.write()
        files = benchmark.files()
        pairs = [(files[i % len(files)], files[(i + 1) % len(files)]) for i in range(episodes)]
        dataset = EpisodeDataset(benchmark, size, [Episode(query, (support,), 0) for query, support in pairs])
        build_cache(benchmark, size)
        sources = {"files": None, "cache": Cache.of(benchmark, size)}
        for processes in workers:
            for source, cache in sources.items():
                benchmark.cache = cache
                start = time.perf_counter()
                title = f"{source}, {processes} workers"
                for _ in tqdm(dataset.loader(20, processes), desc=title, unit="batch", leave=False):
                    pass
                rate = episodes / (time.perf_counter() - start)
                rows.append({"source": source, "workers": processes, "episodes_per_second": rate})
    images = f"{len(files)} drawn JPEGs of 500 × 375 pixels"
    return {"images": images, "episodes": episodes, "cores": os.cpu_count(), "rows": rows}
