"""The embedded benchmark `emoji`: scenes of drawings of real things by seven artists, one of whom is never trained on."""

import numpy as np

from ..paths import data_folder
from .drawn import DrawnBenchmark
from .sprites import ATTRIBUTION, Sprites, drawings_digest, load_concepts

UNSEEN_ARTIST = "streamline-emojis"


class Emoji(DrawnBenchmark):
    """557 concepts in four folds; see data/emoji/README.md. The drawings are fetched at first use.

    Raises:
        SpriteError: the drawings are not there and cannot be fetched.
    """

    name = "emoji"
    attribution = ATTRIBUTION

    def __init__(self, size: int = 256):
        super().__init__(size)
        self.concepts = load_concepts()
        self.class_names = [concept.name for concept in self.concepts]
        self.sprites = Sprites(data_folder() / "emoji")
        families: dict[str, set[int]] = {}
        for concept in self.concepts:
            families.setdefault(concept.family, set()).add(concept.id)
        self._related = [families[concept.family] for concept in self.concepts]

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
