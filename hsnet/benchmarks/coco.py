"""COCO in the folds of COCO-20i: photographs with instance annotations."""

import shutil
from argparse import Namespace
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..prepare.downloads import RemoteFile, fetch_and_unpack, write_json
from ..prepare.findings import Finding, draw, first_of
from ..prepare.masks import (
    SOURCE,
    build,
    coco_mask_sources,
    paint,
    png_files,
    read_instances,
    read_source,
    refuse_others,
    write_coco_mask,
)
from .base import Sample, UnreadableFileError, register
from .instances import Instances
from .listed import ListedBenchmark
from .resize import Square, resize_sample
from .splits import fetch_lists, read_coco

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
# Checksums are the same in several independent projects, and are the tags under which the files are served.
FILES = {
    name: RemoteFile((f"http://images.cocodataset.org/{path}",), f"md5:{md5}", size)
    for name, path, md5, size in (
        ("annotations", "annotations/annotations_trainval2014.zip", "0a379cfc70b0e71301e0f377548639bd", 252_872_794),
        ("train2014", "zips/train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88", 13_510_573_713),
        ("val2014", "zips/val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3", 6_645_013_297),
    )
}


class OtherAnnotationsError(ValueError):
    """Annotations in COCO's format that are not COCO 2014's: there is nothing to be prepared."""


class CocoFolds(ListedBenchmark):
    """COCO's classes in folds: fold f holds out those whose id, 0 to 79, is f modulo 4."""

    name = "coco"
    title = "COCO-20i"
    vocabulary = "coco"
    kept_back = 3
    class_first = True

    def fold_of(self, class_id: int) -> int:
        """One after the other."""
        return class_id % self.folds

    def image_path(self, name: str) -> Path:
        """The image folder's name is part of an image's name."""
        return self.root / name


@register
class Coco(CocoFolds):
    """COCO-20i: the official lists of COCO 2014, and class masks that `hsnet.prepare` has made, or the authors'.

    Training images are of `train2014`, test ones of `val2014`. Expected beside both: `masks/train2014/NAME.png` and
    `masks/val2014/NAME.png`, labels 1 to 80, and `masks/source.json`, which says whose masks they are.
    """

    class_names = CLASSES
    paper_settings: ClassVar = {"batch": 40}
    preparation = "COCO 2014: download (20 GB), build the masks, verify"
    builds_masks = True
    counts: ClassVar = {"train2014/*.jpg": 82_783, "val2014/*.jpg": 40_504}
    covered = 0.02  # smaller instances may hide the listed class altogether

    @classmethod
    def open(cls, **arguments) -> CocoFolds:
        """COCO-20i where the masks of 2014 have been made, else what the annotations give. Raises as `AnnotatedCoco` does."""
        benchmark = cls(**arguments)
        made = any((benchmark.masks / f"{part}2014").is_dir() for part in cls.parts)
        return super().open(**arguments) if made else AnnotatedCoco(**arguments)

    def listed(self, part: str) -> list[tuple[str, int]]:
        """Class after class, in the authors' order."""
        return [
            (f"{part}2014/COCO_{part}2014_{image:012d}.jpg", class_id)
            for class_id, images in sorted(read_coco(part).items())
            for image in images
        ]

    @property
    def masks(self) -> Path:
        """Written by `prepare`, with the note of their source; or as the authors lay theirs out, `annotations/train2014/*.png`."""
        theirs = self.root / "annotations"
        is_theirs = not (self.root / "masks").is_dir() and any((theirs / f"{part}2014").is_dir() for part in self.parts)
        return theirs if is_theirs else self.root / "masks"

    def source(self) -> dict:
        """See `ListedBenchmark.source`; masks in the authors' layout are theirs."""
        return super().source() | ({"source": "authors"} if self.masks.name == "annotations" else {})

    def mask_path(self, name: str) -> Path:
        """masks/ and the image's own name, as PNG."""
        return (self.masks / name).with_suffix(".png")

    def _instances(self) -> dict[str, Path]:
        """The files of instances of COCO 2014 that are there, by image folder.

        Raises:
            OtherAnnotationsError: annotations of something else, saying what they seem to be.
            ValueError: a damaged file.
        """
        found = {
            p.stem.removeprefix("instances_"): p for p in sorted((self.root / "annotations").glob("instances_*.json"))
        }
        official = {folder: path for folder, path in found.items() if folder in FILES}
        for folder, path in (official or found).items():
            count = len(read_instances(path)["categories"])
            if folder not in official or count != len(CLASSES):
                raise OtherAnnotationsError(
                    f"{path}: COCO's format with {count} categories, which is not COCO 2014, so not COCO-20i. Nothing is to be "
                    f"prepared: train with `python -m hsnet.train --benchmark coco --root {self.root}`, which reads it as it is"
                )
        return official

    def prepare(self, options: Namespace) -> None:
        """Images and annotations of COCO 2014, and a class mask of each image. Masks in the authors' layout are left as they are."""
        root, annotations, keep = self.root, self.root / "annotations", options.keep_archives
        instances = self._instances()
        prepared = self.masks == annotations
        if annotations.exists() and not instances and not prepared:
            raise ValueError(
                f"{annotations} holds neither instances_*.json, as COCO is published, nor train2014/*.png, as the authors' "
                "masks are: what is there is left alone; prepare in another folder with --root"
            )
        for folder in ("annotations", "train2014", "val2014"):
            fetch_and_unpack(FILES[folder], {folder: root / folder}, root, keep_archive=keep)
        if not prepared:
            source = {"source": "authors"} if options.masks else {"source": "ours", "crowd": options.crowd}
            refuse_others(self.masks, source)
            for folder, path in self._instances().items():
                if (self.masks / folder).exists():
                    continue
                if options.masks:
                    build(png_files(options.masks / folder), self.masks / folder, shutil.copyfile)
                else:
                    sources = coco_mask_sources(path, options.crowd)
                    build(sources, self.masks / folder, write_coco_mask, options.workers)
                write_json(self.masks / SOURCE, source)
        fetch_lists("coco")

    def verify(self, sample: int | None) -> Iterator[Finding]:
        """See `Benchmark.verify`. Of annotations that are not COCO 2014's it says what they seem to be."""
        try:
            instances = self._instances()
        except ValueError as error:
            yield Finding(str(error), "" if isinstance(error, OtherAnnotationsError) else self.remedy())
            return
        yield from super().verify(sample)
        if read_source(self.masks).get("source") == "authors":
            for folder, path in instances.items():
                yield from self._agreement(folder, coco_mask_sources(path, crowd=True), sample)

    def _agreement(self, folder, sources, sample):
        """How the authors' masks and ours differ, where both an image of a sample and its mask can be read."""
        equal, pixels = 0, 0
        for name in draw(sorted(sources), sample):
            mask = self.masks / folder / name
            if mask.exists() and not self.flaws(f"{folder}/{mask.stem}.jpg", self.size):
                same = paint(*sources[name]) == self.read_labels(mask)
                equal, pixels = equal + same.sum(), pixels + same.size
        if pixels:
            yield Finding(
                f"the authors' masks of {folder} and ours agree in {100 * equal / pixels:.2f} % of the pixels"
            )


class AnnotatedCoco(CocoFolds):
    """COCO of any year, or a sample of it, straight from the annotations: not the official lists.

    Class masks are the union of a class's instances, crowds included. Training images come from `train*`, test ones from
    `val*`. An image counts for one of COCO's classes that covers at least 32 × 32 of its
    pixels; classes of a single image are left out. Categories are matched by their names.

    Expected in `root`: `annotations/instances_train*.json`, `annotations/instances_val*.json` and the image folders they
    are named after (`train2017`, `val2017`, …).

    Raises:
        FileNotFoundError: annotations that are not there, saying what is expected.
        ValueError: see `Instances`; or test categories that training does not have.
    """

    cacheable = False  # instances overlap: one map of labels cannot hold them

    def __init__(self, size: int = 256, root: str | Path = "", novel_images: str = "keep"):
        super().__init__(size, root, novel_images)
        self._instances = {split: self._load(split) for split in self.parts}
        train, val = (
            [cats[c]["name"] for c in sorted(cats)] for cats in (i.coco.cats for i in self._instances.values())
        )
        self.class_names = train  # class id = place in the order of the training's ids
        if unknown := set(val) - set(train):
            raise ValueError(
                f"{self._instances['val'].path.name} has categories that the training's file lacks: {first_of(unknown)}: both "
                "files must use the same names, whatever their ids"
            )

    def _load(self, split):
        files = sorted((self.root / "annotations").glob(f"instances_{split}*.json"))
        if not files:
            raise FileNotFoundError(
                f"no annotations/instances_{split}*.json under {self.root}: give the folder that holds COCO's "
                "`annotations` and image folders with --root, or fetch them with `python -m hsnet.prepare coco`"
            )
        return Instances(files[-1])

    def listed(self, part: str) -> list[tuple[str, int]]:
        """Image after image."""
        return self._listed[part]

    @cached_property
    def _listed(self):
        least = LEAST_AREA if set(self.class_names) <= set(CLASSES) else 1  # of a data set of one's own, small ones too
        ids = {name: c for c, name in enumerate(self.class_names)}
        return {
            part: [(f"{file.folders[0].name}/{name}", ids[category]) for name, category in file.listed(least)]
            for part, file in self._instances.items()
        }

    def images(self, fold: int, split: str) -> dict[int, list[str]]:
        """Images of each class of a split that has at least two: an episode needs a query and another support."""
        return {c: names for c, names in super().images(fold, split).items() if len(names) >= 2}

    def mask_path(self, name: str) -> Path:
        """The annotations that hold it."""
        return self._file(name).path

    def _file(self, name):
        return next(file for file in self._instances.values() if file.folders[0].name == name.split("/")[0])

    def read(self, name: str, class_id: int) -> Sample:
        """A photograph and the union of a class's instances in it. Raises as `Instances.read`."""
        image, mask, objects = self._file(name).read(name.split("/", 1)[1], self.class_names[class_id])
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
