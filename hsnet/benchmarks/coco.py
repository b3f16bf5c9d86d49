"""COCO in the folds of COCO-20i: photographs with instance annotations."""

import contextlib
import io
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from ..paths import images_folder
from .base import Sample, UnreadableFileError
from .listed import ListedBenchmark, open_image
from .resize import Square, resize_sample
from .splits import read_coco

NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter bench "
    "bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis "
    "snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork "
    "knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed "
    "dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock "
    "vase scissors teddy_bear hair_drier toothbrush"
)
CLASSES = [name.replace("_", " ") for name in NAMES.split()]
# An image of a sample counts for a class if the class covers at least this many pixels: COCO's own bound of a small object.
LEAST_AREA = 32 * 32


class CocoFolds(ListedBenchmark):
    """COCO's classes in folds: fold f holds out those whose id, 0 to 79, is f modulo 4."""

    name = "coco"
    kept_back = 3
    class_first = True

    def fold_of(self, class_id: int) -> int:
        """One after the other."""
        return class_id % self.folds

    def image_path(self, name: str) -> Path:
        """The image folder's name is part of an image's name."""
        return self.root / name


class Coco(CocoFolds):
    """COCO-20i: the official lists of COCO 2014, and class masks that `hsnet.prepare` has made, or the authors'.

    Training images are of `train2014`, test ones of `val2014`. Expected beside both: `masks/train2014/NAME.png` and
    `masks/val2014/NAME.png`, labels 1 to 80, and `masks/source.json`, which says whose masks they are.
    """

    class_names = CLASSES

    def listed(self, part: str) -> list[tuple[str, int]]:
        """Class after class, in the authors' order."""
        return [
            (f"{part}2014/COCO_{part}2014_{image:012d}.jpg", class_id)
            for class_id, images in sorted(read_coco(part).items())
            for image in images
        ]

    @property
    def source_path(self) -> Path:
        """Written by `hsnet.prepare`."""
        return self.root / "masks" / "source.json"

    def mask_path(self, name: str) -> Path:
        """masks/ and the image's own name, as PNG."""
        return (self.root / "masks" / name).with_suffix(".png")


class AnnotatedCoco(CocoFolds):
    """COCO of any year, or a sample of it, straight from the annotations: not the official lists.

    Class masks are the union of a class's instances, crowds included. Training images come from `train*`, test ones from
    `val*`. An image counts for a class that covers at least 32 × 32 of its pixels; classes of a single image are left out.

    Args:
        root: a folder with `annotations/instances_train*.json`, `annotations/instances_val*.json` and the image folders
            they are named after (`train2017`, `val2017`, …). Empty: the usual one, see `images_folder`.

    Raises:
        FileNotFoundError: annotations that are not there, saying what is expected.
    """

    cacheable = False  # instances overlap: one map of labels cannot hold them

    def __init__(self, root: str | Path = "", novel_images: str = "keep"):
        super().__init__(root, novel_images)
        self._annotations = {split: self._load(split) for split in self.parts}
        coco = next(iter(self._annotations.values()))[1]
        self.category_ids = sorted(coco.cats)  # class id = place in this order, 0 to 79
        self.class_names = [coco.cats[c]["name"] for c in self.category_ids]

    def _load(self, split):
        files = sorted((self.root / "annotations").glob(f"instances_{split}*.json"))
        if not files:
            raise FileNotFoundError(
                f"no annotations/instances_{split}*.json under {self.root}: give the folder that holds COCO's "
                "`annotations` and image folders with --root, or fetch them with `python -m hsnet.prepare coco`"
            )
        folder = re.fullmatch(r"instances_(\w+)\.json", files[-1].name)[1]
        return folder, _quietly(COCO, files[-1])

    def listed(self, part: str) -> list[tuple[str, int]]:
        """Image after image."""
        return self._listed[part]

    @cached_property
    def _listed(self):
        lists = {}
        for part, (folder, coco) in self._annotations.items():
            pairs = lists[part] = []
            for image_id, image in sorted(coco.imgs.items()):
                annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
                for category in sorted({a["category_id"] for a in annotations}):
                    if sum(a["area"] for a in annotations if a["category_id"] == category) >= LEAST_AREA:
                        pairs.append((f"{folder}/{image['file_name']}", self.category_ids.index(category)))
        return lists

    def images(self, fold: int, split: str) -> dict[int, list[str]]:
        """Images of each class of a split that has at least two: an episode needs a query and another support."""
        return {c: names for c, names in super().images(fold, split).items() if len(names) >= 2}

    def mask_path(self, name: str) -> Path:
        """The annotations that hold it."""
        return self.root / "annotations" / f"instances_{name.split('/')[0]}.json"

    def read(self, name: str, class_id: int) -> Sample:
        """A photograph and the union of a class's instances in it."""
        coco = next(c for f, c in self._annotations.values() if f == name.split("/")[0])
        image = np.asarray(open_image(self.image_path(name)).convert("RGB"))
        expected = coco.imgs[self._ids[name]]
        if image.shape[:2] != (expected["height"], expected["width"]):
            raise UnreadableFileError(
                f"{self.image_path(name)} is {image.shape[1]} × {image.shape[0]} pixels, its annotations are for "
                f"{expected['width']} × {expected['height']}: fetch it again"
            )
        mask, objects = np.zeros((2, *image.shape[:2]), bool)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=self._ids[name])):
            instance = coco.annToMask(annotation).astype(bool)
            objects |= instance
            if annotation["category_id"] == self.category_ids[class_id]:
                mask |= instance
        return Sample(image, mask, objects, np.zeros_like(mask))

    def read_square(self, name: str, class_id: int, size: int) -> Square:
        """As `read`, resized."""
        return resize_sample(self.read(name, class_id), size)

    def flaws(self, name: str, size: int) -> list[str]:
        """See `Benchmark.flaws`: of an image. Its instances are there, or the annotations could not have been read."""
        try:
            self.read(name, class_id=0)
        except (FileNotFoundError, UnreadableFileError) as error:
            return [str(error)]
        return []

    def source(self) -> dict:
        """Its own lists."""
        return {"source": "annotations", "lists": "annotations"}

    def digest(self) -> str:
        """Samples are told apart by their folders, not by a hash."""
        return ""

    @cached_property
    def _ids(self):
        return {
            f"{folder}/{image['file_name']}": i
            for folder, coco in self._annotations.values()
            for i, image in coco.imgs.items()
        }


def open_coco(root: str | Path = "", novel_images: str = "keep") -> CocoFolds:
    """COCO-20i where the masks of 2014 have been made, else what the annotations give. Raises as `AnnotatedCoco` does."""
    prepared = any((images_folder("coco", root) / "masks" / year).is_dir() for year in ("train2014", "val2014"))
    return (Coco if prepared else AnnotatedCoco)(root, novel_images)


def _quietly(load, path):
    """pycocotools prints its progress; a program's output is ours to choose."""
    with contextlib.redirect_stdout(io.StringIO()):
        return load(str(path))
