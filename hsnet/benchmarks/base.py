"""What every benchmark answers: which classes a fold holds out, which episodes test it, what a picture and its mask are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True)
class Sample:
    """One picture and one class in it.

    Attributes:
        image: uint8 RGB (h, w, 3).
        mask: bool (h, w), True on the class.
        objects: bool (h, w), True on every annotated object of any class.
        ignored: bool (h, w), pixels that scoring leaves out.
    """

    image: np.ndarray
    mask: np.ndarray
    objects: np.ndarray
    ignored: np.ndarray


class Benchmark(ABC):
    """Classes in folds, pictures by name, episodes.

    Attributes:
        name: as on the command line.
        class_names: by class id.
        resample_classes: whether intervals resample classes too, see `SegmentationScore`.
    """

    name: str
    folds: int = 4
    class_names: list[str]
    resample_classes = False
    attribution = ""  # a line that pictures of it must carry

    def classes(self, fold: int, split: str) -> list[int]:
        """Class ids of a split: "train" (every fold but this one), "val" or "test" (of this fold).

        Raises:
            ValueError: a fold or split that does not exist.
        """
        if fold not in range(self.folds):
            raise ValueError(f"fold is {fold}: {self.name} has the folds 0 to {self.folds - 1}")
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
        """

    @abstractmethod
    def training_queries(self, fold: int) -> int:
        """How many episodes an epoch has unless a number is asked for."""

    def digest(self) -> str:
        """What must be equal for two scores to be compared: a hash of everything that decides the test pictures."""
        return ""
