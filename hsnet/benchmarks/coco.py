"""COCO in the folds of COCO-20i: photographs with instance annotations."""

from argparse import Namespace
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..prepare.downloads import RemoteFile, fetch_and_unpack
from ..prepare.findings import Finding, OpenedSample, anew, counted, draw, first_of, missing, stems
from ..prepare.masks import (
    agreement,
    begin_masks,
    build_coco_masks,
    image_instances,
    makers,
    paint,
    read_instances,
    read_source,
    take_authors_masks,
)
from .base import Sample, UnreadableFileError, register
from .instances import Instances
from .listed import ListedBenchmark
from .resize import Square, resize_sample
from .splits import OTHER_LISTS, fetch_lists, read_coco, verify_lists

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
COVERED = 0.02  # share of masks in which a smaller instance may hide the listed class altogether
# Checksums are the same in several independent projects, and are the tags under which the files are served.
FILES = {
    "annotations": RemoteFile(
        "annotations_trainval2014.zip",
        ("http://images.cocodataset.org/annotations/annotations_trainval2014.zip",),
        "md5:0a379cfc70b0e71301e0f377548639bd",
        size=252_872_794,
        unpacked=900_000_000,
    ),
    "train2014": RemoteFile(
        "train2014.zip",
        ("http://images.cocodataset.org/zips/train2014.zip",),
        "md5:0da8c0bd3d6becc4dcb32757491aca88",
        size=13_510_573_713,
        unpacked=13_600_000_000,
    ),
    "val2014": RemoteFile(
        "val2014.zip",
        ("http://images.cocodataset.org/zips/val2014.zip",),
        "md5:a3d79f5ed8d289b7a7554ce06a5782b3",
        size=6_645_013_297,
        unpacked=6_700_000_000,
    ),
}


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
    # What is to be there: images by folder; images of the classes that a fold trains on, or is tested on.
    counts: ClassVar = {
        "train2014": 82_783,
        "val2014": 40_504,
        "categories": 80,
        "train": (62_040, 74_381, 73_035, 73_808),
        "val": (26_052, 15_305, 13_138, 12_640),
    }

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

    def _annotations(self):
        files = sorted((self.root / "annotations").glob("instances_*.json"))
        return {path.stem.removeprefix("instances_"): path for path in files}

    def prepare(self, options: Namespace) -> None:
        """Images and annotations of COCO 2014 (of another year, if they are there already), and a class mask of each image."""
        root, annotations, keep = self.root, self.root / "annotations", options.keep_archives
        for path in self._annotations().values():
            if text := self._not_coco(path, read_instances(path)):
                raise ValueError(text)
        if self.masks == annotations:
            for folder in (f"{part}2014" for part in self.parts):
                fetch_and_unpack(FILES[folder], {folder: root / folder}, root, keep_archive=keep)
            fetch_lists("coco")
            return
        if not self._annotations():
            if annotations.exists():
                raise ValueError(
                    f"{annotations} holds neither instances_*.json, as COCO is published, nor train2014/*.png, as the authors' "
                    "masks are: what is there is left alone; prepare in another folder with --root"
                )
            fetch_and_unpack(FILES["annotations"], {"annotations": annotations}, root, keep_archive=keep)
        folders = self._annotations()
        for folder in (f for f in folders if f in FILES):
            fetch_and_unpack(FILES[folder], {folder: root / folder}, root, keep_archive=keep)
        if options.masks:
            take_authors_masks({self.masks / folder: options.masks / folder for folder in folders}, self.masks)
        else:
            how = {"source": "ours", "crowd": options.crowd, "order": "smaller instances over larger ones"}
            begin_masks(self.masks, how)
            for folder, path in folders.items():
                if not (self.masks / folder).exists():
                    build_coco_masks(path, self.masks / folder, crowd=options.crowd, workers=options.workers)
        if "train2014" in folders:
            fetch_lists("coco")

    def verify(self, sample: int | None) -> Iterator[Finding]:
        """See `Benchmark.verify`. For COCO of another year there are no official lists."""
        again = f"run `python -m hsnet.prepare coco --root {self.root}`"
        files, lists = self._annotations(), {}
        if not files and self.masks.name == "annotations":
            yield from self._verify_authors(sample, again)
        elif not files:
            yield Finding(f"no {self.root / 'annotations'}/instances_*.json", again)
        elif {"train2014", "val2014"} <= set(files):
            yield from verify_lists("coco")
            for split in self.parts:
                try:
                    lists[f"{split}2014"] = table = read_coco(split)
                except (FileNotFoundError, ValueError):
                    continue  # said above
                for fold, expected in enumerate(self.counts[split]):
                    found = {i for c, ids in table.items() if (c % 4 == fold) == (split == "val") for i in ids}
                    what = f"images in the {split} lists of fold {fold}"
                    yield counted(what, len(found), expected, OTHER_LISTS, exactly=True)
        else:
            yield Finding(
                f"{', '.join(files)}: not COCO 2014, so without the official lists; scores are not COCO-20i's"
            )
        for folder, path in files.items():
            yield from self._verify_folder(folder, path, lists.get(folder), sample, again)

    def _not_coco(self, path, instances):
        """What a file of instances is, where it has not COCO's number of categories; empty where it has."""
        count = len(instances["categories"])
        if count == self.counts["categories"]:
            return ""
        return (
            f"{path}: COCO's format with {count} categories, which is not COCO-20i. Nothing is to be prepared: train with "
            f"`python -m hsnet.train --benchmark coco --root {path.parent.parent}`, which reads it as it stands"
        )

    def _verify_authors(self, sample, again):
        """The authors' masks beside the images, without instances: what the lists name must be there."""
        yield from verify_lists("coco")
        pairs = [pair for part in self.parts for pair in self.listed(part)]
        theirs = f"copy the authors' masks into {self.masks}"
        for folder in (f"{part}2014" for part in self.parts):
            names = {Path(name).stem for name, _ in pairs if name.startswith(folder)}
            yield from missing(f"listed images of {folder}", names, stems(self.root / folder, ".jpg"), again)
            yield from missing(
                f"listed masks of {folder} (the authors')", names, stems(self.masks / folder, ".png"), theirs
            )
        opened = OpenedSample(self, again, theirs)
        for name, _ in draw(
            [p for p in pairs if self.image_path(p[0]).exists() and self.mask_path(p[0]).exists()], sample
        ):
            opened.labels(name)
        yield from opened.findings()

    def _verify_folder(self, folder, path, table, sample, again):
        images, masks = self.root / folder, self.masks / folder
        get_images, get_masks, get_annotations = (anew(f, again) for f in (images, masks, path.parent))
        try:
            instances = read_instances(path)
        except ValueError as error:
            yield Finding(str(error), get_annotations)
            return
        if text := self._not_coco(path, instances):
            yield Finding(text)
            return
        by_id = {image["id"]: image for image in instances["images"]}
        names = {i: Path(image["file_name"]).stem for i, image in by_id.items()}
        expected = self.counts.get(folder, len(names))
        yield counted(f"images in {path.name}", len(names), expected, get_annotations)
        there, masked = stems(images, ".jpg"), stems(masks, ".png")
        yield from missing(f"images of {folder}", set(names.values()), there, get_images)
        yield from missing(f"masks of {folder} ({makers(self.masks)})", set(names.values()), masked, get_masks)
        source = read_source(self.masks)
        found = image_instances(instances, source.get("crowd", True))
        if table is None:
            pairs = [(i, label - 1) for i, parts in found.items() for label in {part[0] for part in parts}]
        else:
            pairs = [(i, c) for c, ids in table.items() for i in ids]
            if unknown := {str(i) for i, _ in pairs if i not in names}:
                yield Finding(f"listed images that {path.name} does not know: {first_of(unknown)}", get_annotations)
        opened, hidden, sums = OpenedSample(self, get_images, get_masks), 0, np.zeros((2, 4), int)
        authors = source.get("source") == "authors"
        without = image_instances(instances, crowd=False) if authors else {}
        for image_id, class_id in draw([(i, c) for i, c in pairs if names.get(i) in there & masked], sample):
            image = by_id[image_id]
            labels = opened.labels(f"{folder}/{image['file_name']}")
            if labels is None:
                continue
            hidden += not (labels == class_id + 1).any()
            for k, parts in enumerate((found[image_id], without[image_id]) if authors else ()):
                sums[k] += agreement(paint(image["height"], image["width"], parts), labels)
        yield from opened.findings()
        if opened.opened:
            text = f"in {hidden} of {opened.opened} sampled masks of {folder} the listed class does not show"
            yield Finding(text, get_masks if hidden > COVERED * opened.opened else "")
        for (equal, pixels, equal_objects, objects), crowd in zip(sums, ("with", "without"), strict=True):
            if pixels:
                yield Finding(
                    f"the authors' masks of {folder} and ours, {crowd} crowds, agree in {100 * equal / pixels:.2f} % of the "
                    f"pixels, and in {100 * equal_objects / max(objects, 1):.2f} % of those that either calls an object "
                    f"({opened.opened} masks)"
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
