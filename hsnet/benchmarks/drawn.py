"""Benchmarks whose images are drawn on demand: the name of an image describes its scene."""

import hashlib
from abc import abstractmethod
from functools import lru_cache

import numpy as np

from . import scenes
from .base import Benchmark, Episode, Sample


class DrawnBenchmark(Benchmark):
    """Scenes from cut-outs; see `scenes`. A subclass defines classes and artists and draws cut-outs.

    `scenes_version` is raised whenever a name gives other pixels than before: scores of two versions must not stand in one
    table. `tests/test_scenes.py` notices such a change.

    A name is "split.fold.class.artist.key": what the target is, who drew it, and the key from which everything else of
    the scene follows (the distractors, of the same split's classes, among it).
    """

    resample_classes = True
    scenes_version = 1

    @abstractmethod
    def artists(self, class_id: int, split: str) -> list[str]:
        """The artists of a class in a split; at least two, whose names contain no dot."""

    @abstractmethod
    def cutout(self, class_id: int, artist: str, rng: np.random.Generator) -> np.ndarray:
        """A drawing of the class: premultiplied uint8 RGBA (n, n, 4)."""

    def related(self, class_id: int) -> set[int]:
        """Classes, itself included, that are too similar to be its distractors."""
        return {class_id}

    def data_version(self) -> str:
        """What decides a scene besides the code: a hash of the drawings, say."""
        return ""

    @lru_cache(maxsize=12)  # noqa: B019 - benchmarks are few and live as long as the program
    def _classes(self, fold, split):
        every = range(len(self.class_names))
        held_out = [c for c in every if self.fold_of(c) == fold]
        third = len(held_out) // 3  # the lowest ids choose the epoch, the others are scored once
        classes = {"train": sorted({*every} - {*held_out}), "val": held_out[:third], "test": held_out[third:]}[split]
        if not 3 <= len(held_out) < len(every) or any(len(self.artists(c, split)) < 2 for c in classes):
            raise ValueError(f"{self.name} needs at least two folds, three classes in each, two artists of each class")
        return classes

    def draw(self, rng: np.random.Generator, fold: int, shot: int = 1, place: int | None = None) -> Episode:
        """One training episode: a class, then an artist for the query and others for the supports.

        Args:
            place: goes round the classes; None draws one.
        """
        classes = self.classes(fold, "train")
        class_id = classes[rng.integers(len(classes)) if place is None else place % len(classes)]
        return self._episode(rng, fold, "train", class_id, shot)

    def test_episodes(self, fold: int, shot: int, count: int, seed: int, split: str) -> list[Episode]:
        """Episodes that cycle through the classes, so that each occurs equally often (±1). A shorter list begins a longer one."""
        rng = np.random.default_rng([seed, fold, shot, {"val": 1, "test": 2}[split]])
        order = rng.permutation(self.classes(fold, split))
        return [self._episode(rng, fold, split, int(order[i % len(order)]), shot) for i in range(count)]

    def _episode(self, rng, fold, split, class_id, shot):
        # The query's artist is never among the supports; the others take turns.
        query, *others = rng.permutation(self.artists(class_id, split))
        names = [query, *(others[i % len(others)] for i in range(shot))]
        query, *supports = (f"{split}.{fold}.{class_id}.{artist}.{rng.integers(2**40)}" for artist in names)
        return Episode(query, tuple(supports), class_id)

    def objects(self, name: str) -> list[tuple[int, str]]:
        """(class id, artist) of each object of a scene, the target first."""
        return _parse(name, self)[0]

    def scene(self, name: str) -> scenes.Scene:
        """Draw the scene called `name`."""
        objects, rng = _parse(name, self)
        return scenes.compose(rng, [self.cutout(c, artist, rng) for c, artist in objects], self.size)

    def read(self, name: str, class_id: int) -> Sample:
        """Draw a scene; the mask is what is visible of the class: of the target or of any other object."""
        scene = self.scene(name)
        labels = [i + 1 for i, (c, _) in enumerate(self.objects(name)) if c == class_id]
        mask = np.isin(scene.labels, labels)
        return Sample(scene.image, mask, scene.labels > 0, np.zeros_like(mask))

    def training_queries(self, fold: int) -> int:
        """The number of scenes in an epoch; there is no list of them."""
        return 1000

    def digest(self) -> str:
        """A hash of the benchmark's name, the version and size of its scenes, and its drawings."""
        content = f"{self.name} {self.scenes_version} {self.size} {self.data_version()}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _parse(name, benchmark):
    split, fold, class_id, artist, key = name.split(".")
    rng = np.random.default_rng([int(class_id), int(key)])
    objects = [(int(class_id), artist)]
    taken = set(benchmark.related(int(class_id)))
    count = rng.integers(scenes.DISTRACTORS[0], scenes.DISTRACTORS[1] + 1)
    for other in rng.permutation(benchmark.classes(int(fold), split)).tolist():
        if len(objects) > count:
            break
        if other not in taken:
            taken |= benchmark.related(other)
            artists = benchmark.artists(other, split)
            objects.append((other, artists[rng.integers(len(artists))]))
    return objects, rng
