"""COCO in the folds of COCO-20i: photographs with instance annotations."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ..prepare.downloads import RemoteFile, fetch_and_unpack, write_json
from ..prepare.findings import Finding
from ..prepare.masks import SOURCE, build, coco_mask_sources, read_instances, write_coco_mask
from .base import register
from .listed import ListedBenchmark
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
# Checksums are the same in several independent projects, and are the tags under which the files are served.
FILES = {
    name: RemoteFile(f"http://images.cocodataset.org/{path}", f"md5:{md5}")
    for name, path, md5 in (
        ("annotations", "annotations/annotations_trainval2014.zip", "0a379cfc70b0e71301e0f377548639bd"),
        ("train2014", "zips/train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88"),
        ("val2014", "zips/val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3"),
    )
}


@register
class Coco(ListedBenchmark):
    """COCO-20i: the official lists of COCO 2014, and class masks that `hsnet.prepare` has made, or the authors'.

    Fold f holds out the classes whose id, 0 to 79, is f modulo 4. Training images are of `train2014`, test ones of `val2014`. Expected beside both: `masks/train2014/NAME.png` and
    `masks/val2014/NAME.png`, labels 1 to 80, and `masks/source.json`, which says whose masks they are.
    """

    name = "coco"
    title = "COCO-20i"
    vocabulary = "coco"
    kept_back = 3
    class_first = True
    class_names = CLASSES
    paper_settings: ClassVar = {"batch": 40}
    preparation = "COCO 2014: download (20 GB), build the masks, verify"
    covered = 0.02  # smaller instances may hide the listed class altogether

    @classmethod
    def open(cls, **arguments) -> "Coco":
        """See `ListedBenchmark.open`.

        Raises:
            FileNotFoundError: no masks of 2014 have been made.
        """
        benchmark = cls(**arguments)
        if not any((benchmark.masks / f"{part}2014").is_dir() for part in cls.parts):
            raise FileNotFoundError(
                f"no masks of COCO 2014 under {benchmark.root}: `python -m hsnet.prepare coco` downloads COCO and builds them. "
                f"To train on other files in COCO's format, use --benchmark folder --root {benchmark.root}"
            )
        return super().open(**arguments)

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

    def _others(self) -> str:
        """What annotations that are not COCO 2014's seem to be; empty where there are none. Raises as `read_instances`."""
        found = sorted((self.root / "annotations").glob("instances_*.json"))
        for path in [path for path in found if "2014" in path.name] or found:
            count = len(read_instances(path)["categories"])
            if count != len(self.class_names) or "2014" not in path.name:
                return (
                    f"{path}: COCO's format with {count} categories, which is not COCO 2014, so not COCO-20i. Nothing is to be "
                    f"prepared: train with `python -m hsnet.train --benchmark folder --root {self.root}`, which reads it as it is"
                )
        return ""

    def verify(self, sample: int | None) -> Iterator[Finding]:
        """See `Benchmark.verify`. Of annotations that are not COCO 2014's it says what they seem to be."""
        others = self._others()
        yield from [Finding(others)] if others else super().verify(sample)

    def prepare(self, options: Namespace) -> None:
        """Images and annotations of COCO 2014, and a class mask of each image. Masks in the authors' layout are left as they are."""
        if others := self._others():
            raise ValueError(others)
        root, annotations, keep = self.root, self.root / "annotations", options.keep_archives
        prepared = self.masks == annotations
        instances = {folder: annotations / f"instances_{folder}.json" for folder in ("train2014", "val2014")}
        if annotations.exists() and not prepared and not any(path.exists() for path in instances.values()):
            raise ValueError(
                f"{annotations} contains neither COCO's instances_*.json nor the authors' masks, train2014/*.png. Nothing was "
                "changed; choose another folder with --root"
            )
        for folder in ("annotations", "train2014", "val2014"):
            fetch_and_unpack(FILES[folder], {folder: root / folder}, root, keep_archive=keep)
        for folder, path in () if prepared else instances.items():
            if path.exists() and not (self.masks / folder).exists():
                build(coco_mask_sources(path), self.masks / folder, write_coco_mask)
                write_json(self.masks / SOURCE, {"source": "ours", "crowd": True})
        fetch_lists("coco")
