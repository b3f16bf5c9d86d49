"""FSS-1000: a thousand classes of ten images each, with training, validation and test classes of its own."""

import re
from functools import cached_property
from pathlib import Path

import numpy as np

from .listed import ListedBenchmark, open_image
from .splits import read_fss

IMAGES = 10  # of each class


class Fss(ListedBenchmark):
    """520 training, 240 validation and 240 test classes; one fold.

    Expected: `CLASS/N.jpg` and `CLASS/N.png`, N from 1 to 10; a mask is foreground where its first channel is at least 128.
    """

    name = "fss"
    folds = 1
    parts = ("train", "val", "test")
    each_query_once = True

    @cached_property
    def class_names(self) -> list[str]:
        """By class id: those of training, validation and test, sorted within each."""
        return [name for part in self.parts for name in self._names[part]]

    @cached_property
    def _names(self):
        return {part: sorted(read_fss(part)) for part in self.parts}

    def fold_of(self, class_id: int) -> int:
        """There is one."""
        return 0

    def part(self, split: str) -> str:
        """Its own."""
        return split

    def _classes(self, fold, split):
        first = sum(len(self._names[part]) for part in self.parts[: self.parts.index(split)])
        return list(range(first, first + len(self._names[split])))

    def _drops(self, split):
        return False  # an image shows one class

    def listed(self, part: str) -> list[tuple[str, int]]:
        """Ten images a class, sorted as file names are: 1, 10, 2."""
        files = sorted(f"{i}.jpg" for i in range(1, IMAGES + 1))
        classes = zip(self._names[part], self.classes(0, part), strict=True)
        return [(f"{name}/{file}", class_id) for name, class_id in classes for file in files]

    def images(self, fold: int, split: str) -> dict[int, list[str]]:
        """The images of each class, from 1 to 10: the order supports are drawn in."""
        number = lambda name: int(re.search(r"(\d+)\.jpg$", name)[1])  # noqa: E731
        return {c: sorted(names, key=number) for c, names in super().images(fold, split).items()}

    def label(self, class_id: int) -> int:
        """A mask knows one class."""
        return 1

    def image_path(self, name: str) -> Path:
        """CLASS/N.jpg."""
        return self.root / name

    def mask_path(self, name: str) -> Path:
        """CLASS/N.png."""
        return (self.root / name).with_suffix(".png")

    def read_labels(self, path: Path) -> np.ndarray:
        """1 where the first channel of a mask, grey, RGB or RGBA, is at least 128."""
        image = open_image(path)
        plain = {"P": "RGB", "1": "L"}.get(image.mode)  # modes whose values are not channels
        first = np.asarray(image.convert(plain) if plain else image)
        first = first[..., 0] if first.ndim == 3 else first
        return (first >= 128).astype(np.uint8)
