"""Which values or colours a mask is painted in, and which of its pixels belong to each."""

from collections.abc import Sequence

import numpy as np

Label = int | str | Sequence[int]


class Labels:
    """The values or colours that a mask's regions and lines are painted in; what else occurs lies at their edges.

    A label covers areas: pixels whose eight neighbours are equal to them; or lines, which are no transition: brighter or
    darker than all around. Soft edges are strictly between their neighbours, and what JPEG adds is many values, near others.

    Args:
        values: (h, w) numbers or (h, w, 3) colours.
        visible: which pixels are not transparent; None for all.
        lossy: whether values near to each other are one.

    Attributes:
        is_picture: whether the values have textures away from the labels, as photographs do.
    """

    def __init__(self, values: np.ndarray, visible: np.ndarray | None, lossy: bool):
        self.coloured, self.visible = values.ndim == 3, visible
        packed = values.astype(np.int64)
        if self.coloured:
            packed = packed @ np.array([1 << 16, 1 << 8, 1])
        if visible is not None:
            packed[~visible] = -1
        self.distinct, self.codes, self.counts = _distinct(packed)
        self.colours = self.distinct[:, None].astype(float)  # n 1, or n 3
        if self.coloured:
            self.colours = (self.distinct[:, None] >> np.array([16, 8, 0]) & 255).astype(float)
            self.colours[self.distinct < 0] = -1000  # far from all others
        self.near = (255 if self.coloured else max(float(self.distinct[-1]), 1)) / 8
        self.noisy, chosen = False, np.argsort(-self.counts, kind="stable")
        if len(chosen) > 2:
            chosen = self._chosen(lossy)
        self.background = self._background(chosen)
        self.objects = [c for c in chosen if c != self.background and self.distinct[c] >= 0]
        self.is_picture = self.noisy and self._is_textured()

    def _chosen(self, lossy):
        """The codes of the labels, most frequent first; `noisy` is set."""
        n = len(self.distinct)
        rank = np.empty(n, self.codes.dtype)
        rank[np.argsort(self.colours.sum(axis=1), kind="stable")] = np.arange(n)
        ranks = rank[self.codes]  # by brightness
        low, high = _around(ranks)
        self._extreme = (ranks < low) | (high < ranks)
        settled = np.bincount(self.codes[(ranks <= low) | (high <= ranks)], minlength=n)
        flat = np.bincount(self.codes[(ranks == low) & (ranks == high)], minlength=n)
        areas, lines = (flat >= 9) & (flat >= 0.1 * self.counts), settled >= 0.5 * self.counts
        self.noisy = lossy or (~(areas | lines)).sum() > 16
        if not self.noisy:
            if n > 4 and areas.any() and self.near >= 8:  # overshoot beside an edge is a line too
                lines &= np.min([self._off(c) for c in np.flatnonzero(areas)], axis=0) > self.near
            areas |= lines
        if not areas.any():
            areas[np.argmax(self.counts)] = True
        chosen = np.flatnonzero(areas)
        if len(chosen) == 1:  # lines alone, with soft edges
            far = self._off(chosen[0]) > 2 * self.near
            weight = settled if self.coloured else np.arange(1, n + 1)
            chosen = np.append(chosen, np.argmax(np.where(far, weight, 0))) if far.any() else chosen
        chosen = chosen[np.argsort(-self.counts[chosen], kind="stable")]
        if not self.noisy:
            return chosen
        kept: list[int] = []  # of labels near to each other, the one with most pixels
        for c in chosen:
            if all(abs(self.colours[c] - self.colours[k]).max() > self.near for k in kept[:256]):
                kept.append(c)
        return np.array(kept)

    def _off(self, code):
        """How far each distinct colour is from one of them."""
        return abs(self.colours - self.colours[code]).max(axis=1)

    def _background(self, chosen):
        """The code of what is transparent, or of black; None where there is neither."""
        if self.visible is not None or self.distinct[0] == 0:
            return 0
        darkest = min(chosen, key=lambda c: self.colours[c].sum())
        return darkest if self.noisy and len(chosen) > 1 and self.colours[darkest].max() <= self.near else None

    def _is_textured(self):
        """Transitions rise and fall from one label to another; textures have peaks and pits, away from labels too."""
        painted = [*self.objects[:64], *([] if self.background is None else [self.background])]
        left = np.min([self._off(c) for c in painted], axis=0) > self.near
        front = self.counts[np.arange(len(self.counts)) != self.background].sum()
        if self.background is None and len(self.objects) == 1:
            return self.counts[left].sum() > 0.002 * front
        away = _around(left[self.codes])[0] & self._extreme
        return away.sum() > 0.01 * front

    def the_object(self) -> np.ndarray | None:
        """The pixels of the only label beside the background; None where there are several, or none is background."""
        if not self.objects:
            return np.zeros(self.codes.shape, bool)
        if len(self.objects) > 1 or (self.is_picture and self.visible is not None):
            return None
        if self.visible is not None:
            return self.visible
        if self.background is None:
            return np.ones(self.codes.shape, bool)
        begin = self.colours[self.background]
        way = self.colours[self.objects[0]] - begin
        return ((self.colours - begin) @ way > 0.5 * way @ way)[self.codes]  # soft edges are cut at half

    def pick(self, name: str, label: int | tuple[int, ...]) -> np.ndarray:
        """The pixels nearer to a label than to any other; ValueError where it does not occur."""
        if not self.coloured and isinstance(label, tuple) and len(set(label)) == 1:
            label = label[0]
        wanted = np.atleast_1d(np.array(label, float))
        distance = abs(self.colours - wanted).max(axis=1) + (0 if len(wanted) == self.colours.shape[1] else np.inf)
        target = int(np.argmin(distance))
        if distance[target] > (1.5 * self.near if self.noisy else 0):
            raise ValueError(f"{name} has no label {_shown(label)}: it holds {', '.join(self.choices(None)[0][:8])}")
        if self.noisy:  # the label that this is a shade of
            target = min([target, *self.objects], key=lambda c: abs(self.colours[c] - wanted).max())
        others = list({*self.objects, self.background} - {None, target})
        if not others or not (self.noisy or len(self.distinct) > len(others) + 1):
            return self.codes == target
        own = ((self.colours - self.colours[target]) ** 2).sum(axis=1)
        nearest = np.min([((self.colours - self.colours[c]) ** 2).sum(axis=1) for c in others], axis=0)
        return (own < nearest)[self.codes]

    def choices(self, indices: np.ndarray | None) -> tuple[list[str], str]:
        """Each label with its share of the picture, most first, and the first of them to pick."""
        texts, labels = [], [_shown(tuple(map(int, self.colours[c]))) for c in self.objects[:256]]
        for c, label in zip(self.objects, labels, strict=False):
            index = "" if indices is None else f"{indices.ravel()[np.argmax(self.codes == c)]} = "
            texts.append(f"{index}{label} ({100 * self.counts[c] / self.codes.size:.2g} %)")
        return texts, labels[0] if labels else "255"


def parse_label(label):
    """A label as a number, a colour or a name."""
    if label is None or isinstance(label, (int, np.integer)):
        return label if label is None else int(label)
    if isinstance(label, str):
        text = label.strip().strip("()")
        if text.startswith("#") and len(text) == 7:
            return tuple(bytes.fromhex(text[1:]))
        try:
            label = tuple(int(part) for part in text.split(","))
        except ValueError:
            return label
    if len(label) not in (1, 3):
        raise ValueError(f"label is {label!r}: give a value (3), a colour (255,0,0) or, for annotations, a name")
    return int(label[0]) if len(label) == 1 else tuple(map(int, label))


def _distinct(packed):
    """The distinct numbers, sorted; each pixel's place among them; and how often each occurs."""
    first = int(packed.min())
    if packed.max() - first < 1 << 24:
        table = np.bincount((packed - first).ravel())
        used = np.flatnonzero(table)
        places = np.zeros(len(table), np.min_scalar_type(len(used)))
        places[used] = np.arange(len(used))
        return used + first, places[packed - first], table[used]
    distinct, codes, counts = np.unique(packed, return_inverse=True, return_counts=True)
    return distinct, codes.reshape(packed.shape), counts


def _around(values):
    """The least and the largest of each pixel's eight neighbours."""
    from scipy.ndimage import maximum_filter, minimum_filter

    options = {"footprint": np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool), "mode": "nearest"}
    return minimum_filter(values, **options), maximum_filter(values, **options)


def _shown(label):
    return ",".join(map(str, label)) if isinstance(label, tuple) else str(label)
