"""COCO in the folds of COCO-20i: photographs with instance annotations."""

import contextlib
import io
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from ..config import data_folder
from .base import Benchmark, Episode, Sample

# An image counts for a class if the class covers at least this many pixels: COCO's own bound of a small object.
LEAST_AREA = 32 * 32


class Coco(Benchmark):
    """80 classes; fold f holds out those whose id is f modulo 4. Training images come from `train*`, test ones from `val*`.

    Class masks are the union of a class's instances. Validation and test are the same episodes, as in the paper.

    Args:
        root: a folder with `annotations/instances_train*.json`, `annotations/instances_val*.json` and the image folders
            they are named after (`train2017`, `val2017`, …). Empty: `coco` in the data folder.

    Raises:
        FileNotFoundError: annotations that are not there, saying what is expected.
    """

    name = "coco"

    def __init__(self, root: str | Path = ""):
        self.root = Path(root or data_folder() / "coco")
        self._annotations = {split: self._load(split) for split in ("train", "val")}
        coco = next(iter(self._annotations.values()))[1]
        self.category_ids = sorted(coco.cats)  # class id = place in this order, 0 to 79
        self.class_names = [coco.cats[c]["name"] for c in self.category_ids]

    def _load(self, split):
        files = sorted((self.root / "annotations").glob(f"instances_{split}*.json"))
        if not files:
            raise FileNotFoundError(
                f"no annotations/instances_{split}*.json under {self.root}: give the folder that holds COCO's "
                "`annotations`, `train2017` and `val2017` with --root, or put it there"
            )
        folder = re.fullmatch(r"instances_(\w+)\.json", files[-1].name)[1]
        return folder, _quietly(COCO, files[-1])

    def _classes(self, fold, split):
        return [c for c in range(len(self.class_names)) if (c % self.folds == fold) == (split != "train")]

    @cached_property
    def _images(self) -> dict[str, dict[int, list[str]]]:
        """Per annotation file, per class: the names of the images that show enough of it."""
        lists = {}
        for split, (folder, coco) in self._annotations.items():
            by_class = lists[split] = {c: [] for c in range(len(self.class_names))}
            for image_id, image in sorted(coco.imgs.items()):
                annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
                for category in sorted({a["category_id"] for a in annotations}):
                    if sum(a["area"] for a in annotations if a["category_id"] == category) >= LEAST_AREA:
                        by_class[self.category_ids.index(category)].append(f"{folder}/{image['file_name']}")
        return lists

    def images(self, fold: int, split: str) -> dict[int, list[str]]:
        """Images of each class of a split that has at least two: an episode needs a query and another support."""
        lists = self._images["train" if split == "train" else "val"]
        return {c: lists[c] for c in self.classes(fold, split) if len(lists[c]) >= 2}

    def draw(self, rng: np.random.Generator, fold: int, shot: int = 1) -> Episode:
        """One training episode: an image of the training lists, one of its classes, other images of that class."""
        lists = self.images(fold, "train")
        query, class_id = self._training_pairs(fold)[rng.integers(self.training_queries(fold))]
        others = [name for name in lists[class_id] if name != query]
        return Episode(query, tuple(others[i] for i in rng.integers(len(others), size=shot)), class_id)

    def _training_pairs(self, fold):
        return [(name, c) for c, names in self.images(fold, "train").items() for name in names]

    def training_queries(self, fold: int) -> int:
        """Number of (image, class) pairs of the training folds."""
        return len(self._training_pairs(fold))

    def test_episodes(self, fold: int, shot: int, count: int, seed: int, split: str) -> list[Episode]:
        """The official draw: class, then query, then supports that may repeat, from numpy's legacy generator."""
        lists = self.images(fold, split)
        rng = np.random.RandomState(seed)
        episodes = []
        for _ in range(count):
            class_id = pick(rng, list(lists))
            query = pick(rng, lists[class_id])
            supports = []
            while len(supports) < shot:
                support = pick(rng, lists[class_id])
                if support != query:
                    supports.append(support)
            episodes.append(Episode(query, tuple(supports), class_id))
        return episodes

    def read(self, name: str, class_id: int) -> Sample:
        """A photograph and the union of a class's instances in it."""
        folder, file_name = name.split("/")
        coco = next(c for f, c in self._annotations.values() if f == folder)
        path = self.root / folder / file_name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is named in the annotations but not there: unpack the images of {folder} into {self.root}"
            )
        image = np.asarray(Image.open(path).convert("RGB"))
        mask, objects = np.zeros((2, *image.shape[:2]), bool)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=self._ids[name])):
            instance = coco.annToMask(annotation).astype(bool)
            objects |= instance
            if annotation["category_id"] == self.category_ids[class_id]:
                mask |= instance
        return Sample(image, mask, objects, np.zeros_like(mask))

    @cached_property
    def _ids(self):
        return {
            f"{folder}/{image['file_name']}": i
            for folder, coco in self._annotations.values()
            for i, image in coco.imgs.items()
        }


def pick(rng: np.random.RandomState, items: list):
    """One draw from a list: what `rng.choice(items, 1, replace=False)` gives, ten times faster."""
    return items[rng.permutation(len(items))[0]]


def _quietly(load, path):
    """pycocotools prints its progress; a program's output is ours to choose."""
    with contextlib.redirect_stdout(io.StringIO()):
        return load(str(path))
