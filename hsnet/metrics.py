"""mIoU and FB-IoU of few-shot segmentation, from areas summed over episodes."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

LEVEL = 0.95  # of intervals


class SegmentationScore:
    """Collects the areas of each episode and turns them into scores in percent.

    Args:
        class_ids: the classes that are scored (of the held-out fold).
        resample_classes: whether `interval` resamples classes as well as episodes: for benchmarks with many classes,
            of which the tested ones are a sample.
    """

    COLUMNS = ("class_id", "intersection_background", "intersection_foreground", "union_background", "union_foreground")

    def __init__(self, class_ids: Sequence[int], resample_classes: bool = False):
        self.class_ids = list(class_ids)
        self.resample_classes = resample_classes
        self._rows: list[list[int]] = []

    @classmethod
    def from_rows(
        cls, rows: Iterable[Sequence[int]], class_ids: Sequence[int] | None = None, resample_classes: bool = False
    ) -> "SegmentationScore":
        """The score of stored areas, rows of `COLUMNS`; by default of the classes in them."""
        rows = list(rows)
        score = cls(sorted({row[0] for row in rows}) if class_ids is None else class_ids, resample_classes)
        score.extend(rows)
        return score

    @property
    def rows(self) -> list[list[int]]:
        """A copy of the areas of each episode in pixels, rows of `COLUMNS`, as a run stores them."""
        return [list(row) for row in self._rows]

    def part(self, episodes: Iterable[int]) -> "SegmentationScore":
        """The score over some of the episodes, given by their positions."""
        return self.from_rows((self._rows[i] for i in episodes), self.class_ids, self.resample_classes)

    def extend(self, rows: Iterable[Sequence[int]]) -> None:
        """Add stored areas, rows of `COLUMNS`.

        Raises:
            ValueError: a class that is not scored.
        """
        rows = [list(row) for row in rows]
        unknown = sorted({row[0] for row in rows} - set(self.class_ids))
        if unknown:
            raise ValueError(f"class {unknown} is not among the scored classes {self.class_ids}")
        self._rows += rows

    def reset(self) -> None:
        """Remove all episodes."""
        self._rows = []

    def update(
        self,
        prediction: Bool[Tensor, "b h w"],
        truth: Bool[Tensor, "b h w"],
        class_id: Int[Tensor, " b"] | Sequence[int],
        ignored: Bool[Tensor, "b h w"] | None = None,
    ) -> None:
        """Add a batch of episodes; see `areas`.

        Raises:
            ValueError: masks of different shapes, or a class that is not scored.
        """
        class_id, areas = torch.as_tensor(class_id).tolist(), self.areas(prediction, truth, ignored).tolist()
        self.extend([c, *row] for c, row in zip(class_id, areas, strict=True))

    @staticmethod
    def areas(
        prediction: Bool[Tensor, "b h w"], truth: Bool[Tensor, "b h w"], ignored: Bool[Tensor, "b h w"] | None = None
    ) -> Int[Tensor, "b 4"]:
        """The areas of each episode, in the order of `COLUMNS`, on the masks' device. `ignored` pixels count nowhere.

        Raises:
            ValueError: masks of different shapes.
        """
        if prediction.shape != truth.shape or (ignored is not None and ignored.shape != truth.shape):
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)}, truth {tuple(truth.shape)}: they must agree"
            )
        counted = torch.ones_like(truth) if ignored is None else ~ignored
        areas = [  # boolean sums: torch.histc fails on integers
            ((~prediction & ~truth) & counted).sum((1, 2)),
            ((prediction & truth) & counted).sum((1, 2)),
            ((~prediction | ~truth) & counted).sum((1, 2)),
            ((prediction | truth) & counted).sum((1, 2)),
        ]
        return torch.stack(areas, 1)

    def condense(self, beyond: int = 0) -> None:
        """Replace more than `beyond` rows by one row for each class with summed areas. Scores stay the same; intervals are lost."""
        if len(self._rows) <= beyond:
            return
        table = self._table()
        classes = np.unique(table[:, 0])
        self._rows = [[int(c), *table[table[:, 0] == c, 1:].sum(0).tolist()] for c in classes]

    def miou(self) -> float:
        """Mean over the classes that occurred of (summed intersection) / (summed union, at least 1) of the foreground."""
        return float(np.mean(list(self.class_iou().values())))

    def fb_iou(self) -> float:
        """Mean of the background's and the foreground's IoU, areas summed over all episodes."""
        sums = self._table()[:, 1:].sum(0)
        return float(100 * np.mean(sums[:2] / np.maximum(sums[2:], 1)))

    def class_iou(self) -> dict[int, float]:
        """IoU in percent of each class that occurred."""
        table = self._table()
        sums = {c: table[table[:, 0] == c].sum(0) for c in self.class_ids if (table[:, 0] == c).any()}
        return {c: float(100 * s[2] / max(s[4], 1)) for c, s in sums.items()}

    def absent(self) -> list[int]:
        """The scored classes without an episode; they do not count in the mean."""
        return [c for c in self.class_ids if c not in {row[0] for row in self._rows}]

    def interval(self) -> tuple[float, float]:
        """95 % interval of the mIoU, see `bootstrap`."""
        return _middle(self.bootstrap())

    def interval_above(self, other: "SegmentationScore") -> tuple[float, float]:
        """95 % interval of this mIoU minus another's on the same episodes, with the same resampled episodes for both.

        Raises:
            ValueError: scores of other episodes.
        """
        if [row[0] for row in self._rows] != [row[0] for row in other._rows]:
            raise ValueError(
                f"scores of {len(self._rows)} and {len(other._rows)} episodes whose classes differ: a paired interval needs "
                "the same episodes in the same order"
            )
        return _middle(self.bootstrap() - other.bootstrap())

    def bootstrap(self, samples: int = 1000, seed: int = 0) -> np.ndarray:
        """The mIoU of `samples` draws: episodes are resampled within their class (and classes, with `resample_classes`)."""
        table = self._table()
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(table[:, 0] == c) for c in self.class_iou()]
        inter = np.empty((samples, len(members)))
        union = np.empty_like(inter)
        for i, m in enumerate(members):
            weights = rng.multinomial(len(m), np.full(len(m), 1 / len(m)), size=samples)  # how often each is drawn
            inter[:, i], union[:, i] = weights @ table[m, 2], weights @ table[m, 4]
        iou = 100 * inter / np.maximum(union, 1)
        if self.resample_classes:
            iou = np.take_along_axis(iou, rng.integers(0, len(members), iou.shape), axis=1)
        return iou.mean(1)

    def summary(self) -> dict:
        """The scores as they are stored in a run's `test-*.json`, in percent."""
        return {
            "miou": self.miou(),
            "interval": self.interval(),
            "fb_iou": self.fb_iou(),
            "classes": len(self.class_ids) - len(self.absent()),
            "absent_classes": self.absent(),
            "episodes": len(self._rows),
        }

    def _table(self) -> np.ndarray:
        if not self._rows:
            raise ValueError("no episode has been scored yet: call update first")
        return np.array(self._rows, dtype=np.int64)


def _middle(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
