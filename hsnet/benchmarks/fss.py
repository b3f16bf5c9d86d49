"""FSS-1000: a thousand classes of ten images each, with training, validation and test classes of its own."""

from argparse import Namespace
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ..prepare.findings import Finding
from .base import Sample, register
from .listed import ListedBenchmark, open_image
from .splits import fetch_lists, read_fss

IMAGES = 10  # of each class
BY_HAND = """FSS-1000 has no stable public address; its makers share it through a link that a person must follow.
  1. Open https://github.com/HKUSTCV/FSS-1000 and follow the download link of its README (fewshot_data.zip).
  2. Unpack it, and move the folders of the 1000 classes (abacus, ab_wheel, …) into {root}, so that there are
     {root}/abacus/1.jpg … 10.jpg and 1.png … 10.png.
  3. Run `python -m hsnet.prepare fss` again: it verifies what is there."""


@register
class Fss(ListedBenchmark):
    """520 training, 240 validation and 240 test classes; one fold.

    Expected: `CLASS/N.jpg` and `CLASS/N.png`, N from 1 to 10. A mask is foreground where its grey is at least 128, as the
    authors read it. It is resized whatever its size: that of peregine_falcon/8 is published larger than its image.
    """

    name = "fss"
    title = "FSS-1000"
    folds = 1
    parts = ("train", "val", "test")
    each_query_once = True
    paper_settings: ClassVar = {"val_episodes": 2400, "test_episodes": 2400}  # each image of the test classes once
    preparation = "explains where to get FSS-1000 and where it goes, and verifies it"

    @cached_property
    def class_names(self) -> list[str]:
        """By class id: those of training, validation and test, sorted within each."""
        return [name for part in self.parts for name in self._names[part]]

    @cached_property
    def _names(self):
        return {part: sorted(read_fss(part)) for part in self.parts}

    def part(self, split: str) -> str:
        """Its own."""
        return split

    def _classes(self, fold, split):
        first = sum(len(self._names[part]) for part in self.parts[: self.parts.index(split)])
        return list(range(first, first + len(self._names[split])))

    def listed(self, part: str) -> list[tuple[str, int]]:
        """Ten images a class, sorted as file names are: 1, 10, 2."""
        files = sorted(f"{i}.jpg" for i in range(1, IMAGES + 1))
        classes = zip(self._names[part], self.classes(0, part), strict=True)
        return [(f"{name}/{file}", class_id) for name, class_id in classes for file in files]

    @lru_cache(maxsize=16)  # noqa: B019 - as in `ListedBenchmark`
    def images(self, fold: int, split: str) -> dict[int, list[str]]:
        """The images of each class, from 1 to 10: the order supports are drawn in."""
        lists = super().images(fold, split)
        return {c: sorted(names, key=lambda name: int(Path(name).stem)) for c, names in lists.items()}

    def label(self, class_id: int) -> int:
        """A mask knows one class."""
        return 1

    def mask_path(self, name: str) -> Path:
        """CLASS/N.png."""
        return (self.root / name).with_suffix(".png")

    def read_labels(self, path: Path) -> np.ndarray:
        """1 where the grey of a mask, whatever its mode, is at least 128."""
        return (np.asarray(open_image(path).convert("L")) >= 128).astype(np.uint8)

    def picture(self, name: str) -> tuple[Image.Image, np.ndarray]:
        """An image and its labels, of their own sizes. Raises as `ListedBenchmark.picture` does."""
        return open_image(self.image_path(name)).convert("RGB"), self.read_labels(self.mask_path(name))

    def read(self, name: str, class_id: int) -> Sample:
        """An image and its mask, at the image's size."""
        image, labels = self.picture(name)
        if labels.shape != image.size[::-1]:
            labels = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
        return Sample(np.asarray(image), *self._masks(labels, class_id))

    def prepare(self, options: Namespace) -> None:
        """The lists; the images are fetched by hand.

        Raises:
            FileNotFoundError: no class is there; the message says how to get them.
        """
        if not any(self.root.glob("*/1.jpg")):
            raise FileNotFoundError(BY_HAND.format(root=self.root))
        fetch_lists("fss")

    def remedy(self) -> str:
        """Where the folders of the classes belong."""
        return f"unpack FSS-1000 so that {self.root}/abacus/1.jpg is there; `python -m hsnet.prepare fss` says how"

    def verify(self, sample: int | None) -> Iterator[Finding]:
        """See `Benchmark.verify`; all 10,000 unless `sample` says how many."""
        yield from super().verify(1000 * IMAGES if sample is None else sample)
        mask, image = (self.root / f"peregine_falcon/8.{suffix}" for suffix in ("png", "jpg"))
        if mask.exists() and image.exists() and open_image(mask).size != open_image(image).size:
            yield Finding(f"{mask} has another size than its image: as published, and resized as the authors do")
