"""What every benchmark answers: which classes a fold holds out, which episodes test it, what a picture and its mask are."""

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass

import numpy as np

from .resize import Sample, Square, resize_sample

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Episode:
    """One question, as names only: segment in `query` what `supports` show of the class.

    Attributes:
        query: name of a picture.
        supports: names of the K annotated pictures, K = shot.
        class_id: the class asked for.
    """

    query: str
    supports: tuple[str, ...]
    class_id: int


class UnreadableFileError(OSError):
    """An image or a mask that is there but cannot be used; the message names its path and what is wrong."""


class Benchmark(ABC):
    """Classes in folds, pictures by name, episodes.

    Attributes:
        name: as on the command line.
        class_names: by class id.
        protocols: the rules by which its episodes can be drawn; `protocol` is the one in force, see `under`.
        each_query_once: whether an epoch asks for each training query once, instead of drawing them.
        cacheable: whether `build_cache` can keep its pictures.
        resample_classes: whether intervals resample classes too, see `SegmentationScore`.
    """

    name: str
    folds: int = 4
    protocols: tuple[str, ...] = ("official",)
    protocol = "official"
    each_query_once = False
    cacheable = False
    class_names: list[str]
    resample_classes = False
    attribution = ""  # a line that pictures of it must carry

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

    @abstractmethod
    def draw(self, rng: np.random.Generator, fold: int, shot: int = 1) -> Episode:
        """One training episode."""

    @abstractmethod
    def test_episodes(self, fold: int, shot: int, count: int, seed: int, split: str) -> list[Episode]:
        """The episodes of "val" or "test": a function of the arguments alone."""

    @abstractmethod
    def read(self, name: str, class_id: int) -> Sample:
        """The picture called `name` and its mask of a class.

        Raises:
            FileNotFoundError: a picture that is not there, saying how to get it.
            UnreadableFileError: one that cannot be read, or a mask that does not fit it.
        """

    def read_square(self, name: str, class_id: int, size: int) -> Square:
        """The same, resized to `size` × `size`. Raises as `read` does."""
        return resize_sample(self.read(name, class_id), size)

    def check(self, fold: int, split: str, tolerated: int = 0) -> None:  # noqa: B027 - what is drawn has no files
        """See that the files of a split's episodes are there, without opening them.

        Args:
            tolerated: how many may be missing.

        Raises:
            FileNotFoundError: a tree that is not there or not whole, saying the next step.
        """

    def flaws(self, name: str, size: int) -> list[str]:
        """What is wrong with the files of a picture, each with its path, by reading all that `read_square` reads.

        Nothing for what is drawn, and for what a cache of this size holds.
        """
        return []

    @abstractmethod
    def training_queries(self, fold: int) -> int:
        """How many episodes an epoch has unless a number is asked for."""

    def digest(self) -> str:
        """What must be equal for two scores to be compared: a hash of everything that decides the test pictures."""
        return ""

    def source(self) -> dict:
        """Where lists and masks come from, for the records of a test."""
        return {}
