"""The interface of a benchmark: classes and folds, episodes, images, settings in the paper, and the source of its files."""

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..prepare.findings import Finding
from .resize import Sample, Square, resize_sample

SPLITS = ("train", "val", "test")
BENCHMARKS: dict[str, type["Benchmark"]] = {}  # by name, as on the command line
REMOVED = {
    "emoji-photo": "it was removed; train for photographs with --benchmark folder, from the weights `photographs`"
}


@dataclass(frozen=True)
class Episode:
    """One episode, as names: segment in `query` the objects of the class that `supports` show.

    Attributes:
        query: name of an image.
        supports: names of the K annotated images, K = shot.
        class_id: the class.
    """

    query: str
    supports: tuple[str, ...]
    class_id: int


class UnreadableFileError(OSError):
    """An image or a mask that is there but cannot be used; the message names its path and what is wrong."""


def register(benchmark: type["Benchmark"]) -> type["Benchmark"]:
    """Decorator that enters a class in `BENCHMARKS`, from which command lines, tables and checks take it."""
    benchmark.vocabulary = benchmark.vocabulary or benchmark.name
    benchmark.title = benchmark.title or benchmark.name
    BENCHMARKS[benchmark.name] = benchmark
    return benchmark


class Benchmark(ABC):
    """Classes in folds, images by name, episodes. Making one reads no file; `open` does.

    Args:
        size: side of drawn scenes in pixels; of images, the side at which a cache is looked for.
        root: folder of the files; empty for the usual one.
        novel_images: whether to "keep" or "drop" training images that also show a held-out class.

    Attributes:
        name: as on the command line.
        title: as in tables; by default its name.
        summary: what the name does not say, for `--help`.
        vocabulary: shared by benchmarks whose classes are the same things; by default its name.
        folds: how many groups of classes there are.
        class_names: by class id.
        protocols: the rules by which its episodes can be drawn; `protocol` is the one in force, see `under`.
        trained_as: the benchmark whose runs it tests, where it has no training of its own.
        paper_settings: what the paper's training on it sets otherwise than `hsnet.paper`; None where the paper has none.
        training_settings: what training on it sets otherwise than the defaults of `Config`.
        options: names of further arguments of its constructor, which are settings of `Config` too.
        preparation: what `hsnet.prepare` does for it; empty for nothing.
        prepared: what `hsnet.prepare` and the folder of images are called, where that is not the benchmark's name.
        each_query_once: whether an epoch asks for each training query once, instead of drawing them.
        cacheable: whether `build_cache` can keep its images.
        resample_classes: whether intervals resample classes too, see `SegmentationScore`.
        attribution: a line that its images must carry.
    """

    name: str
    title = ""
    summary = ""
    vocabulary = ""
    folds = 4
    class_names: list[str]
    protocols: tuple[str, ...] = ("official",)
    protocol = "official"
    trained_as = ""
    paper_settings: dict | None = None
    training_settings: ClassVar[dict] = {}
    options: tuple[str, ...] = ()
    preparation = ""
    prepared = ""
    each_query_once = False
    cacheable = False
    resample_classes = False
    attribution = ""
    root: Path

    def __init__(self, size: int = 256, root: str | Path = "", novel_images: str = "keep"):
        self.size, self.novel_images = size, novel_images

    @classmethod
    def open(cls, *, size: int, root: str | Path = "", novel_images: str = "keep") -> "Benchmark":
        """The benchmark with what it needs of its files. Arguments are the constructor's; errors name the next step."""
        return cls(size, root, novel_images)

    def under(self, protocol: str) -> "Benchmark":
        """The same benchmark under another protocol.

        Raises:
            ValueError: a protocol that it does not have.
        """
        if protocol not in self.protocols:
            names = ", ".join(self.protocols)
            raise ValueError(f"protocol is {protocol!r}: {self.name} has {names}")
        other = copy(self)
        other.protocol = protocol
        return other

    # Classes

    def classes(self, fold: int, split: str) -> list[int]:
        """Class ids of a split: those that a fold trains on, chooses the epoch by ("val"), and is tested on.

        Raises:
            ValueError: a fold or split that does not exist.
        """
        if fold not in range(self.folds):
            has = f"the folds 0 to {self.folds - 1}" if self.folds > 1 else "one split only, --fold 0"
            raise ValueError(f"fold is {fold}: {self.name} has {has}")
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
        return self._classes(fold, split)

    @abstractmethod
    def _classes(self, fold: int, split: str) -> list[int]: ...

    def fold_of(self, class_id: int) -> int:
        """The fold that holds this class out: by default classes are dealt to the folds in turn."""
        return class_id % self.folds

    def common_name(self, class_id: int) -> str:
        """The name of a class in the `vocabulary`."""
        return self.class_names[class_id]

    def seen(self, fold: int, run: "Benchmark", run_fold: int) -> list[str]:
        """Names of the test classes of `fold` that a run on the benchmark `run`, holding out `run_fold`, was trained on."""
        if self.vocabulary != run.vocabulary:
            return []
        trained = {run.common_name(c) for c in run.classes(run_fold, "train")}
        return [self.class_names[c] for c in self.classes(fold, "test") if self.common_name(c) in trained]

    # Episodes

    @abstractmethod
    def draw(self, rng: np.random.Generator, fold: int, shot: int = 1, place: int | None = None) -> Episode:
        """One training episode.

        Args:
            place: its query among the `training_queries`; None draws one.
        """

    @abstractmethod
    def training_queries(self, fold: int) -> int:
        """The default number of training episodes in an epoch."""

    @abstractmethod
    def test_episodes(self, fold: int, shot: int, count: int, seed: int, split: str) -> list[Episode]:
        """The episodes of "val" or "test": a function of the arguments alone."""

    # Pictures

    @abstractmethod
    def read(self, name: str, class_id: int) -> Sample:
        """The image called `name` and its mask of a class.

        Raises:
            FileNotFoundError: a missing image, saying how to get it.
            UnreadableFileError: one that cannot be read, or a mask of another size.
        """

    def read_square(self, name: str, class_id: int, size: int) -> Square:
        """The same, resized to `size` × `size`. Raises as `read` does."""
        return resize_sample(self.read(name, class_id), size)

    def check(self, fold: int, split: str) -> None:  # noqa: B027 - what is drawn has no files
        """Check that the files of a split's episodes exist, without opening them.

        Raises:
            FileNotFoundError: a folder that is not there or lacks files, saying the next step.
        """

    def flaws(self, name: str, size: int) -> list[str]:
        """What is wrong with the files of an image, each with its path, by reading all that `read_square` reads.

        Nothing for what is drawn, and for what a cache of this size holds.
        """
        return []

    # Records and files

    def digest(self) -> str:
        """What must be equal for two scores to be compared: a hash of everything that decides the test images."""
        return ""

    def source(self) -> dict:
        """Where lists and masks come from, for the records of a test."""
        return {}

    def prepare(self, options: Namespace) -> None:  # noqa: B027 - most need nothing
        """Fetch and build the files in `root`; every step that is done is skipped.

        Args:
            options: of the command line, see `hsnet.prepare.__main__`.
        """

    def verify(self, sample: int | None) -> Iterator[Finding]:
        """What `root` holds, compared with what it must hold, and a sample of so many images and masks."""
        yield from ()
