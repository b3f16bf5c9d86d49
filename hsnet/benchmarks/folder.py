"""A user's data set: images with masks in folders, or COCO's json; any classes."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ..pictures import SUFFIXES, read_image, read_mask
from ..prepare.findings import Finding, draw, first_of
from .base import SPLITS, Episode, UnreadableFileError, register
from .instances import Instances, instance_files
from .listed import ListedBenchmark

SPLITS_FILE = "splits.json"
TEST = "test:"  # begins the names of images under `test_root`
CLASS, OTHER = 1, 2  # labels of the class asked for, and of the other annotated objects
VALIDATION = 5  # of so many training classes one chooses the epoch
LAYOUTS = """CLASS/NAME.jpg with CLASS/NAME.png beside it; images/NAME.jpg with masks/CLASS/NAME.png; or COCO's json files \
with their images"""


class MaskFiles:
    """`CLASS/NAME.jpg` with `CLASS/NAME.png`, or `images/NAME.jpg` with `masks/CLASS/NAME.png`, where images may show several classes.

    Attributes:
        names: of the images that have a mask, by class.
        unpaired: files without their counterpart.
    """

    def __init__(self, root: Path):
        self.root = root
        several = (root / "images").is_dir() and (root / "masks").is_dir()
        images = {path.stem: path for path in _pictures(root / "images")} if several else {}
        self._files: dict[tuple[str, str], tuple[Path, Path]] = {}
        self._shown: dict[Path, list[str]] = {}
        self.names: dict[str, list[str]] = {}
        files = set(images.values())
        for folder in sorted(path for path in (root / "masks" if several else root).iterdir() if path.is_dir()):
            inside = _pictures(folder)
            files.update(inside)
            masks = {path.stem: path for path in inside if path.suffix.lower() == ".png"}
            own = images if several else {path.stem: path for path in inside if path.suffix.lower() != ".png"}
            for name in sorted(masks.keys() & own.keys()):
                self._files[folder.name, name] = own[name], masks[name]
                self._shown.setdefault(own[name], []).append(folder.name)
                self.names.setdefault(folder.name, []).append(name)
        self.unpaired = sorted(files - {path for pair in self._files.values() for path in pair})

    def paths(self, class_name: str, name: str) -> tuple[Path, Path]:
        """The files of an image and of its mask."""
        return self._files[class_name, name]

    def picture(self, class_name: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """An image, uint8 RGB (h, w, 3), and its labels, uint8 (h, w): `CLASS`, `OTHER`, or 0."""
        image, mask = self.paths(class_name, name)
        pixels = read_image(image)[0]
        labels = _mask(mask, pixels) * np.uint8(CLASS)
        for other in self._shown[image]:
            if other != class_name:
                labels[_mask(self.paths(other, name)[1], pixels) & (labels == 0)] = OTHER
        return pixels, labels

    def shown(self, class_name: str, name: str) -> list[str]:
        """The classes that have a mask of this image."""
        return self._shown[self.paths(class_name, name)[0]]


class CocoFiles:
    """Files in COCO's format, whose categories are matched by their names.

    Args:
        least_area: smallest area in pixels at which a class counts as shown in an image.
    """

    def __init__(self, root: Path, least_area: int):
        self.root, self.unpaired = root, []
        self._files = {path.relative_to(root).as_posix(): Instances(path) for path in instance_files(root)}
        self.names: dict[str, list[str]] = {}
        self._shown: dict[str, list[str]] = {}
        for file, instances in self._files.items():
            for name, class_name in instances.listed(max(1, least_area)):
                self.names.setdefault(class_name, []).append(f"{file}|{name}")
                self._shown.setdefault(f"{file}|{name}", []).append(class_name)
        self.names = dict(sorted(self.names.items()))

    def _split(self, name):
        file, name = name.split("|", 1)
        return self._files[file], name

    def paths(self, class_name: str, name: str) -> tuple[Path, Path]:
        """The files of an image and of its annotations."""
        instances, name = self._split(name)
        return instances.image_path(name), instances.path

    def picture(self, class_name: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """An image, uint8 RGB (h, w, 3), and its labels, uint8 (h, w): `CLASS`, `OTHER`, or 0."""
        instances, name = self._split(name)
        image, mask, objects = instances.read(name, class_name)
        return image, np.where(mask, np.uint8(CLASS), objects * np.uint8(OTHER))

    def shown(self, class_name: str, name: str) -> list[str]:
        """The classes that are annotated in this image."""
        return self._shown[name]


def read_layout(root: Path, least_area: int = 0) -> MaskFiles | CocoFiles:
    """The data set in a folder, of whichever layout it has.

    Raises:
        FileNotFoundError: no such folder, or one of no known layout.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: give your data set's folder with --root. It should hold {LAYOUTS}")
    masks = (root / "images").is_dir() and (root / "masks").is_dir()
    layout = CocoFiles(root, least_area) if not masks and instance_files(root) else MaskFiles(root)
    if not any(layout.names.values()):
        raise FileNotFoundError(f"no image with a mask in {root}: it should hold {LAYOUTS}")
    return layout


@register
class Folder(ListedBenchmark):
    """Images and masks of a user, in one of three layouts: see `LAYOUTS`.

    Classes are sorted by name. Class i of those with at least two images is held out by fold i modulo 4. `splits.json`
    in the folder names training, validation and test classes instead, {"train": […], "val": […], "test": […]}, and
    may weigh how often a class is drawn in training, {"weights": {"cat": 0.5}}. With `test_root` every class of `root` is
    trained on, and those of `test_root` are the test. The epoch is chosen by every fifth training class, which is
    not trained on, unless `splits.json` names others. Supports repeat only where a class has too few images.

    Attributes:
        least_area: see `CocoFiles`.
    """

    name = "folder"
    title = "own images"
    summary = "(your own images and masks, --root DIR)"
    protocols = ("official",)
    class_first = distinct = True
    resample_classes = True
    options = ("test_root", "least_area")
    training_settings: ClassVar = {
        "size": 288,
        "augment": "mirror,crop,colour,zoom",
        "learning_rate": 0.008,
        "rule": "mean",
        "start": "photographs",
        "test_episodes": 300,  # windows take time
    }
    preparation = "counts and opens your own images and masks in --root"

    def __init__(
        self,
        size: int = 256,
        root: str | Path = "",
        novel_images: str = "keep",
        test_root: str | Path = "",
        least_area: int = 0,
    ):
        super().__init__(size, root, novel_images)
        self.test_root, self.least_area = Path(test_root) if test_root else None, least_area

    @cached_property
    def layout(self) -> MaskFiles | CocoFiles:
        """What lies in `root`. Raises as `read_layout`."""
        return read_layout(self.root, self.least_area)

    @cached_property
    def test_layout(self) -> MaskFiles | CocoFiles | None:
        """What lies in `test_root`."""
        return read_layout(self.test_root, self.least_area) if self.test_root else None

    @cached_property
    def _names(self):
        """(layout, class, images), by class id: those of `root` with at least two images, then those of `test_root`."""
        found = []
        for layout in (self.layout, self.test_layout):
            for name, images in layout.names.items() if layout else ():
                if len(images) > 1:
                    found.append((layout, name, images))
        return found

    @cached_property
    def class_names(self) -> list[str]:
        """By class id."""
        return [name for _, name, _ in self._names]

    @cached_property
    def _splits(self):
        """Class ids of each split, by fold.

        Raises:
            ValueError: too few classes, or a `splits.json` that names others than there are.
        """
        own = [c for c, (layout, *_) in enumerate(self._names) if layout is self.layout]
        others = [c for c in range(len(self._names)) if c not in set(own)]
        named = self._named
        if shared := {self.class_names[c] for c in own} & {self.class_names[c] for c in others}:
            raise ValueError(
                f"{self.test_root} contains training classes of {self.root}: {first_of(shared)}. A few-shot test needs "
                "other classes: remove them from one of the folders"
            )
        if named:
            ids = {split: [c for c in own if self.class_names[c] in named[split]] for split in SPLITS}
            ids["test"] = others or ids["test"]
            deals = [ids if ids["val"] else ids | _validation(ids["train"])]
        elif others:
            deals = [{"test": others} | _validation(own)]
        else:
            folds = min(4, len(own)) or 1
            deals = [
                {"test": own[f::folds]} | _validation([c for c in own if c not in own[f::folds]]) for f in range(folds)
            ]
        for deal in deals:
            if empty := [split for split in SPLITS if not deal[split]]:
                raise ValueError(
                    f"classes with two images or more in {self.root}: {len(own)} of {len(self.layout.names)}, which leaves none for "
                    f"{' and '.join(empty)}. Training, validation and test need different classes. Annotate more images, or give a "
                    "folder of test classes with --test-root"
                )
        return deals

    @cached_property
    def _named(self):
        """What `splits.json` holds; {} where there is none."""
        path = self.root / SPLITS_FILE
        if not path.exists():
            return {}
        try:
            named = {split: [] for split in SPLITS} | {"weights": {}} | json.loads(path.read_text())
            listed = Counter(c for split in SPLITS for c in named[split])
            unknown = sorted((set(listed) | set(named["weights"])) - set(self.class_names))
        except (ValueError, TypeError) as error:
            raise ValueError(f'{path} must be {{"train": ["cat", …], "val": […], "test": […]}}: {error}') from error
        if twice := [c for c, n in listed.items() if n > 1]:
            raise ValueError(f"{path}: {first_of(twice)} named twice")
        if unknown:
            raise ValueError(f"{path} names classes that do not have two images in {self.root}: {first_of(unknown)}")
        return named

    @property
    def folds(self) -> int:
        """Four, or as many as there are classes; one with `splits.json` or `test_root`."""
        return len(self._splits) if self.root.is_dir() else 4

    def _classes(self, fold, split):
        return self._splits[fold][split]

    def part(self, split: str) -> str:
        """All splits are of one list."""
        return "all"

    parts = ("all",)

    def listed(self, part: str) -> list[tuple[str, int]]:
        """(CLASS/image, class id), class after class."""
        prefix = [TEST if layout is self.test_layout else "" for layout, *_ in self._names]
        return [
            (f"{prefix[c]}{name}/{image}", c) for c, (_, name, images) in enumerate(self._names) for image in images
        ]

    def pairs(self, fold: int, split: str) -> list[tuple[str, int]]:
        """(image, class id) of a split; with `novel_images` "drop", training images show no class that is held out."""
        pairs = super().pairs(fold, split)
        if not self._drops(split):
            return pairs
        held_out = {self.class_names[c] for c in self.classes(fold, "test") + self.classes(fold, "val")}
        places = {name: self._place(name) for name, _ in pairs}
        return [(name, c) for name, c in pairs if not held_out & set(places[name][0].shown(*places[name][1:]))]

    def draw(self, rng: np.random.Generator, fold: int, shot: int = 1, place: int | None = None) -> Episode:
        """One training episode: its class first, with the weights of `splits.json`, then a query and supports of it."""
        if place is not None:
            return super().draw(rng, fold, shot, place)
        lists = self._lists(fold, "train", shot)
        weights = self._named.get("weights", {})
        weights = np.array([weights.get(self.class_names[c], 1.0) for c in lists], float)
        class_id = int(rng.choice(list(lists), p=weights / weights.sum()))
        pick = lambda names: names[rng.integers(len(names))]  # noqa: E731
        return self._episode(pick, pick(lists[class_id]), class_id, lists[class_id], shot)

    # Files

    def _place(self, name):
        layout = self.test_layout if name.startswith(TEST) else self.layout
        class_name, image = name.removeprefix(TEST).split("/", 1)
        return layout, class_name, image

    def label(self, class_id: int) -> int:
        """Labels are of the class that the name says."""
        return CLASS

    def image_path(self, name: str) -> Path:
        """The file of an image."""
        layout, *place = self._place(name)
        return layout.paths(*place)[0]

    def mask_path(self, name: str) -> Path:
        """The file of its mask."""
        layout, *place = self._place(name)
        return layout.paths(*place)[1]

    def picture(self, name: str) -> tuple[Image.Image, np.ndarray]:
        """An image and its labels: 1 for the class, 2 for other annotated objects. Raises as `ListedBenchmark.picture` does."""
        layout, *place = self._place(name)
        try:
            image, labels = layout.picture(*place)
        except ValueError as error:
            raise UnreadableFileError(str(error)) from error
        if not (labels == CLASS).any():
            raise UnreadableFileError(
                f"{layout.paths(*place)[1]} marks no pixel of {place[0]}: correct it, or delete it"
            )
        return Image.fromarray(image), labels

    def check(self, fold: int, split: str) -> None:
        """See `Benchmark.check`. The lists are made from the files; those that are left out are said once."""
        self._lists(fold, split, shot=1)
        for layout in (self.layout, self.test_layout) if split == "train" else ():
            if layout and layout.unpaired:
                warnings.warn(
                    f"{len(layout.unpaired)} files in {layout.root} have no mask or no image and are ignored: "
                    f"{first_of(map(str, layout.unpaired))}",
                    stacklevel=2,
                )

    def source(self) -> dict:
        """What the cache and the records of a test compare: the names and sizes of all files."""
        files = sorted(
            {path for name, _ in self.listed("all") for path in (self.image_path(name), self.mask_path(name))}
        )
        content = "".join(f"{path.name} {path.stat().st_size if path.exists() else 0}\n" for path in files)
        return {"lists": "files", "source": hashlib.sha256(content.encode()).hexdigest()[:16]}

    def verify(self, sample: int | None) -> Iterator[Finding]:
        """See `Benchmark.verify`; all images unless `sample` says how many."""
        pairs = self.listed("all")
        sizes = Counter(c for _, c in pairs)
        yield Finding(f"{len(pairs):,} masks of {len(sizes):,} classes in {self.root}")
        for layout in (self.layout, self.test_layout):
            single = [c for c, names in layout.names.items() if len(names) == 1] if layout else []
            if single:
                yield Finding(f"{len(single)} classes have only one image and are excluded: {first_of(single)}")
            if layout and layout.unpaired:
                text = f"{len(layout.unpaired)} files have no mask or no image: {first_of(map(str, layout.unpaired))}"
                yield Finding(text, "give each image a mask of the same name, or delete it")
        try:
            for fold, deal in enumerate(self._splits):
                numbers = ", ".join(f"{len(deal[split])} {split}" for split in SPLITS)
                yield Finding(f"fold {fold}: {numbers} classes")
        except ValueError as error:
            yield Finding(str(error), "see the message")
        drawn = list(draw(pairs, len(pairs) if sample is None else sample))
        flaws = dict.fromkeys(flaw for name, _ in drawn for flaw in self.flaws(name, 0))
        for flaw in flaws:
            yield Finding(flaw, "correct the file, or delete it")
        if not flaws:
            yield Finding(f"{len(drawn):,} masks opened with their images")


def _validation(ids):
    """Training and validation classes: every fifth, and one at least, chooses the epoch."""
    val = ids[VALIDATION - 1 :: VALIDATION] or ids[-1:]
    return {"train": [c for c in ids if c not in val], "val": val}


def _pictures(folder):
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _mask(path, image):
    mask = read_mask(path)
    if mask.shape != image.shape[:2]:
        raise UnreadableFileError(
            f"{path} is {mask.shape[1]} × {mask.shape[0]} pixels, its image {image.shape[1]} × {image.shape[0]} (rotated "
            "by its EXIF): a mask must have its image's size"
        )
    return mask
