"""The embedded benchmark `emoji`: scenes of drawings of real things by seven artists, one of whom is never trained on."""

from argparse import Namespace
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ..paths import data_folder
from ..prepare.findings import Finding
from .base import register
from .drawn import DrawnBenchmark
from .sprites import ATTRIBUTION, Sprites, are_prepared, drawings, drawings_digest, load_concepts

UNSEEN_ARTIST = "streamline-emojis"


@register
class Emoji(DrawnBenchmark):
    """557 concepts in four folds; see data/emoji/README.md. The drawings are fetched at first use, into `root`."""

    name = "emoji"
    vocabulary = "emoji"
    attribution = ATTRIBUTION
    preparation = "the drawings of the embedded benchmark: download (9 MB), render"

    def __init__(self, size: int = 256, root: str | Path = "", novel_images: str = "keep"):
        super().__init__(size, root, novel_images)
        self.root = Path(root or data_folder() / "emoji")
        self.concepts = load_concepts()
        self.class_names = [concept.name for concept in self.concepts]
        families: dict[str, set[int]] = {}
        for concept in self.concepts:
            families.setdefault(concept.family, set()).add(concept.id)
        self._related = [families[concept.family] for concept in self.concepts]

    @classmethod
    def open(cls, **arguments) -> "Emoji":
        """The benchmark with its drawings.

        Raises:
            ConnectionError: the drawings are not there and cannot be fetched.
        """
        benchmark = cls(**arguments)
        benchmark.prepare()
        return benchmark

    @cached_property
    def sprites(self) -> Sprites:
        """The drawings, fetched and rendered if need be."""
        return Sprites(self.root)

    def prepare(self, options: Namespace | None = None) -> None:
        """Fetch and render the drawings that are not there. Raises as `open` does."""
        self.sprites  # noqa: B018 - made at its first use

    def verify(self, sample: int) -> Iterator[Finding]:
        """See `Benchmark.verify`."""
        if are_prepared(self.root):
            yield Finding(f"{len(drawings()):,} drawings of {len(self.concepts)} concepts in {self.root}")
        else:
            text = f"no drawings of the present list of concepts in {self.root}"
            yield Finding(text, "run `python -m hsnet.prepare emoji`")

    def fold_of(self, class_id: int) -> int:
        """As listed: siblings share a fold."""
        return self.concepts[class_id].fold

    def related(self, class_id: int) -> set[int]:
        """The concept's family: a cat is no distractor of a cat's face."""
        return self._related[class_id]

    def artists(self, class_id: int, split: str) -> list[str]:
        """The sets that draw the concept; the unseen artist only outside training."""
        sets = self.concepts[class_id].drawings
        return [s for s in sets if split != "train" or s != UNSEEN_ARTIST]

    def cutout(self, class_id: int, artist: str, rng: np.random.Generator) -> np.ndarray:
        """The artist's drawing of the concept: premultiplied uint8 RGBA (160, 160, 4)."""
        return self.sprites.image(class_id, artist)

    def data_version(self) -> str:
        """The list of concepts, their packages and how they are rendered."""
        return drawings_digest()
