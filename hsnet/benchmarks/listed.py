"""What PASCAL-5i, COCO-20i and FSS-1000 share: lists, protocols, and images beside maps of labels."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..paths import images_folder
from ..pictures import counted
from ..prepare.findings import Finding, draw, first_of
from ..prepare.masks import read_source
from .base import Benchmark, Episode, Sample, UnreadableFileError
from .cache import Cache
from .resize import Square, resize_image, resize_labels
from .splits import verify_lists

BOUNDARY = 255


class ListedBenchmark(Benchmark):
    """Images whose masks are maps of labels, 0 for the background, and lists that say which image shows which class.

    Protocols. "official" is the paper's: validation asks the test episodes, supports may repeat. "strict": from each
    training fold the `kept_back` classes with the highest ids are left out of training, and episodes of them, in
    training images, choose the epoch; the supports of an episode are distinct.

    Attributes:
        parts: of the lists.
        kept_back: see above.
        class_first: whether a query is drawn by drawing its class first.
        distinct: whether supports repeat only where a class has too few images, whatever the protocol.
        has_boundary: whether label 255 marks pixels of no class.
        covered: share of masks that may lack the class they are listed for.
    """

    protocols = ("official", "strict")
    preparation = "verifies its lists, images and masks"
    cacheable = True
    parts: tuple[str, ...] = ("train", "val")
    kept_back = 1
    class_first = distinct = False
    has_boundary = False
    covered = 0.0

    def __init__(self, size: int = 256, root: str | Path = "", novel_images: str = "keep"):
        super().__init__(size, root, novel_images)
        self.prepared = self.prepared or self.name
        self.root = images_folder(self.prepared, root)
        self.cache: Cache | None = None

    @classmethod
    def open(cls, **arguments) -> "ListedBenchmark":
        """The benchmark, and its cache where there is one. Raises as `Cache.of` does."""
        benchmark = cls(**arguments)
        benchmark.cache = Cache.of(benchmark, benchmark.size)
        return benchmark

    @abstractmethod
    def listed(self, part: str) -> list[tuple[str, int]]:
        """(image, class id) of a part of the lists, "train" or "val" (FSS-1000: or "test"), in their order."""

    def image_path(self, name: str) -> Path:
        """The file of an image."""
        return self.root / name

    @abstractmethod
    def mask_path(self, name: str) -> Path:
        """The file of its labels."""

    def label(self, class_id: int) -> int:
        """What marks a class in the maps."""
        return class_id + 1

    def part(self, split: str) -> str:
        """Which part of the lists a split's episodes are of."""
        strict_validation = split == "val" and self.protocol == "strict"
        return "train" if split == "train" or strict_validation else "val"

    def _classes(self, fold, split):
        by_fold = [[c for c in range(len(self.class_names)) if self.fold_of(c) == f] for f in range(self.folds)]
        if split == "test" or (split == "val" and self.protocol == "official"):
            return by_fold[fold]
        others = [ids for f, ids in enumerate(by_fold) if f != fold]
        back = self.kept_back if self.protocol == "strict" else 0
        return sorted(c for ids in others for c in (ids[-back:] if split == "val" else ids[: len(ids) - back]))

    # Lists and episodes

    @lru_cache(maxsize=16)  # noqa: B019 - benchmarks are few and live as long as the program
    def pairs(self, fold: int, split: str) -> list[tuple[str, int]]:
        """(image, class id) of a split, in the order of the lists."""
        listed = self.listed(self.part(split))
        classes = set(self.classes(fold, split))
        novel = {name for name, c in listed if c not in classes} if self._drops(split) else set()
        return [(name, c) for name, c in listed if c in classes and name not in novel]

    def _drops(self, split):
        return split == "train" and self.novel_images == "drop"

    @lru_cache(maxsize=16)  # noqa: B019
    def images(self, fold: int, split: str) -> dict[int, list[str]]:
        """The images of each class of a split."""
        lists: dict[int, list[str]] = {c: [] for c in self.classes(fold, split)}
        for name, c in self.pairs(fold, split):
            lists[c].append(name)
        return lists

    def draw(self, rng: np.random.Generator, fold: int, shot: int = 1, place: int | None = None) -> Episode:
        """One training episode: a query, its class, other images of that class; `place` is the query's in `pairs`."""
        lists = self._lists(fold, "train", shot)
        if self.class_first and place is None:
            class_id = list(lists)[rng.integers(len(lists))]
            query = lists[class_id][rng.integers(len(lists[class_id]))]
        else:
            pairs = self.pairs(fold, "train")
            query, class_id = pairs[rng.integers(len(pairs)) if place is None else place]
        return self._episode(lambda names: names[rng.integers(len(names))], query, class_id, lists[class_id], shot)

    def training_queries(self, fold: int) -> int:
        """As in the paper: the (image, class) pairs of the training folds, or their images where the class is drawn first."""
        pairs = self.pairs(fold, "train")
        return len({name for name, _ in pairs}) if self.class_first else len(pairs)

    def test_episodes(self, fold: int, shot: int, count: int, seed: int, split: str) -> list[Episode]:
        """Drawn with numpy's legacy generator, before any pixel is read.

        The queries go round the list, or class and query are drawn; then supports until they differ from the query
        ("strict": and from each other).
        """
        lists = self._lists(fold, split, shot)
        pairs = self.pairs(fold, split)
        rng = np.random.RandomState(seed)
        episodes = []
        # The classes that validate under "strict" have lists of very different lengths: going round them would starve some.
        class_first = self.class_first or (split == "val" and self.part(split) == "train")
        for i in range(count):
            if class_first:
                class_id = pick(rng, list(lists))
                query = pick(rng, lists[class_id])
            else:
                query, class_id = pairs[i % len(pairs)]
            episodes.append(self._episode(lambda names: pick(rng, names), query, class_id, lists[class_id], shot))
        return episodes

    def _episode(self, draw_one, query, class_id, names, shot):
        supports: list[str] = []
        while len(supports) < shot:
            support = draw_one(names)
            repeated = support in supports and len(set(supports)) < len(names) - 1
            if support != query and not (repeated and (self.distinct or self.protocol == "strict")):
                supports.append(support)
        return Episode(query, tuple(supports), class_id)

    def _lists(self, fold, split, shot):
        """The images of each class of a split, which must be enough to draw episodes from."""
        lists = self.images(fold, split)
        least = shot + 1 if self.protocol == "strict" else 2
        few = {c: len(names) for c, names in lists.items() if len(names) < least}
        if few or not lists:
            c, n = next(iter(few.items()), (None, 0))
            what = f"class {c} ({self.class_names[c]}) has {counted(n, 'image')}" if few else "no class has images"
            remedy = "look at the lists with `python -m hsnet.prepare splits --check`, or lower --shot"
            raise ValueError(
                f"{self.name}, fold {fold}, {split}: {what}, an episode of {counted(shot, 'support')} needs {least} "
                f"under the {self.protocol} protocol: {'use --novel-images keep' if self._drops(split) else remedy}"
            )
        return lists

    def names(self) -> list[str]:
        """Every image of the lists, once."""
        return sorted({name for part in self.parts for name, _ in self.listed(part)})

    # Files

    def check(self, fold: int, split: str) -> None:
        """See `Benchmark.check`."""
        next_step = f"`python -m hsnet.prepare {self.prepared} --check` names the missing files and how to get them"
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {self.root} for {self.name}: give it with --root; {next_step}")
        self._lists(fold, split, shot=1)
        names = dict.fromkeys(name for name, _ in self.pairs(fold, split))
        files = [path for name in names for path in (self.image_path(name), self.mask_path(name))]
        # One look at each folder instead of one at each of 100,000 files.
        there = {p for folder in {f.parent for f in files} if folder.is_dir() for p in folder.iterdir()}
        missing = [path for path in files if path not in there]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(files)} images and masks of {self.name}'s {split} episodes are missing, such as "
                f"{missing[0]}: is a download incomplete? {next_step}"
            )

    def flaws(self, name: str, size: int) -> list[str]:
        """See `Benchmark.flaws`: files that are missing, broken off, of a wrong kind or size, or hold unknown labels."""
        if self._is_cached(name, size):
            return []
        try:
            self.read(name, class_id=0)
        except (FileNotFoundError, UnreadableFileError) as error:
            return [str(error)]
        return []

    def remedy(self) -> str:
        """What to do about files that are missing or wrong."""
        if type(self).prepare is Benchmark.prepare:  # which does nothing
            return f"put the right files into {self.root}"
        again = f"run `python -m hsnet.prepare {self.prepared} --root {self.root}`"
        return f"{again}; what is there is left alone, so move a folder with wrong files elsewhere before"

    def verify(self, sample: int | None) -> Iterator[Finding]:
        """See `Benchmark.verify`: the lists, the listed images and masks, and a sample of them opened."""
        yield from (official := [*verify_lists(self.prepared)])
        try:
            pairs = [pair for part in self.parts for pair in self.listed(part)]
        except (FileNotFoundError, ValueError) as error:
            yield from [] if official else [Finding(str(error), self.remedy())]  # of official lists it is said above
            return
        there = dict.fromkeys(name for name, _ in pairs)
        made_by = {"ours": "built here", "authors": "the authors'"}.get(self.source().get("source"), "as published")
        for what, path_of in (("images", self.image_path), (f"masks ({made_by})", self.mask_path)):
            lacking = [name for name in there if not path_of(name).exists()]
            text = f"{len(lacking):,} of {len(there):,} listed {what} are missing: {first_of(lacking)}"
            yield Finding(text, self.remedy()) if lacking else Finding(f"all {len(there):,} listed {what} are there")
            for name in lacking:
                del there[name]
        yield from self._verify_opened([pair for pair in pairs if pair[0] in there], sample)

    def _verify_opened(self, pairs, sample):
        """Images and masks opened as training does."""
        opened, wrong, without = 0, [], []
        for name, class_id in draw(pairs, sample):
            opened += 1
            try:
                labels = self.picture(name)[1]
            except OSError as error:
                wrong.append(str(error))
                continue
            if not (labels == self.label(class_id)).any():
                label, path = self.label(class_id), self.mask_path(name)
                without.append(f"{path} lacks class {label}, for which its image is listed")
        if len(without) > self.covered * opened:
            wrong += without
        if wrong:
            yield Finding("; ".join(wrong[:3]) + f" (and {len(wrong) - 3} more)" * (len(wrong) > 3), self.remedy())
        elif opened:
            yield Finding(f"{opened} listed pairs of an image and a class opened: sizes and labels are right")

    def _is_cached(self, name, size):
        return self.cache is not None and self.cache.size == size and name in self.cache

    def picture(self, name: str) -> tuple[Image.Image, np.ndarray]:
        """An image, RGB, and its map of labels, uint8 (h, w).

        Raises:
            FileNotFoundError: a file that is not there.
            UnreadableFileError: one that cannot be read, or a mask of another size; both name the path.
        """
        image = open_image(self.image_path(name)).convert("RGB")
        labels = self.read_labels(self.mask_path(name))
        if labels.shape != image.size[::-1]:
            raise UnreadableFileError(
                f"{self.mask_path(name)} is {labels.shape[1]} × {labels.shape[0]} pixels, its image "
                f"{image.width} × {image.height}: a mask has its image's size"
            )
        return image, labels

    def read_labels(self, path: Path) -> np.ndarray:
        """The map of labels in a file, uint8 (h, w): palette or grey PNG."""
        image = open_image(path)
        if image.mode not in ("P", "L"):
            raise UnreadableFileError(f"{path} is a {image.mode} image: a mask holds labels, in grey or with a palette")
        labels = np.asarray(image)
        highest = int(labels[labels < BOUNDARY].max(initial=0))
        if highest > len(self.class_names):
            raise UnreadableFileError(
                f"{path} contains the label {highest}: the labels of {self.name} are 0 to {len(self.class_names)} and {BOUNDARY}"
            )
        return labels

    def read(self, name: str, class_id: int) -> Sample:
        """An image and the mask of a class. Raises as `picture` does."""
        image, labels = self.picture(name)
        return Sample(np.asarray(image), *self._masks(labels, class_id))

    def read_square(self, name: str, class_id: int, size: int) -> Square:
        """As `resize_sample(read(name, class_id), size)`, only faster: labels are resized once, a cache saves the decoding."""
        if self._is_cached(name, size):
            image, labels = self.cache.read(name)
        else:
            image, labels = self.read_labelled_square(name, size)
        return Square(image, *self._masks(labels, class_id))

    def read_labelled_square(self, name: str, size: int):
        """What the cache stores: the image, uint8 3 s s, and its labels, uint8 s s."""
        image, labels = self.picture(name)
        return resize_image(image, size), resize_labels(labels, size)

    def _masks(self, labels, class_id):
        """Mask, objects and ignored pixels: of arrays and of tensors."""
        ignored = labels == BOUNDARY
        objects = (labels > 0) & ~ignored
        return labels == self.label(class_id), objects, ignored if self.has_boundary else ignored & False

    @property
    def masks(self) -> Path | None:
        """The folder of the masks and of the note whose they are, where `prepare` builds them."""
        return None

    def source(self) -> dict:
        """Whose lists and masks: "source" is "ours" or "authors", "crowd" whether COCO's crowds count."""
        record = read_source(self.masks) if self.masks else {}
        return {"lists": "official"} | {k: record[k] for k in ("source", "crowd") if k in record}

    def digest(self) -> str:
        """A hash of the lists, the protocol and where the masks come from."""
        content = json.dumps([self.listed(p) for p in self.parts if p != "train"])
        content += f"{self.protocol} {json.dumps(self.source(), sort_keys=True)}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def pick(rng: np.random.RandomState, items: list):
    """One draw from a list: what `rng.choice(items, 1, replace=False)` gives, ten times faster."""
    return items[rng.permutation(len(items))[0]]


def open_image(path: Path) -> Image.Image:
    """A file as an image whose pixels are in memory.

    Raises:
        FileNotFoundError: it is not there.
        UnreadableFileError: it is no image, or broken off.
    """
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        remedy = "`python -m hsnet.prepare` with --check names its source"
        raise FileNotFoundError(f"{path} is listed but missing: {remedy}") from error
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise UnreadableFileError(f"{path} cannot be read ({error}): replace it") from error
    return image
