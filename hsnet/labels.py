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
        self.scale = 255 if self.coloured else max(float(self.distinct[-1]), 1)
        self.near = self.scale / 8
        n = len(self.distinct)
        self.ranks = self.codes  # by brightness
        if self.coloured:
            rank = np.empty(n, self.codes.dtype)
            rank[np.argsort(self.colours @ [0.299, 0.587, 0.114], kind="stable")] = np.arange(n)
            self.ranks = rank[self.codes]
        self.noisy, self.smooth, chosen = False, False, np.arange(n)
        if n > 2:
            chosen = self._chosen(lossy)
        chosen = chosen[np.argsort(-self.counts[chosen], kind="stable")]
        if self.noisy:
            chosen = self._apart(chosen, self.near)
        elif not self.coloured and self.distinct[-1] == 255:  # the whites of a brush
            whites = [c for c in chosen if self.distinct[c] >= 240]
            chosen = np.array([c for c in chosen if c not in whites[1:]])
        self.background = self._background(chosen)
        self.objects = [c for c in chosen if c != self.background and self.distinct[c] >= 0]
        self.is_picture = self._is_picture()

    def _chosen(self, lossy):
        """The codes of the labels; `noisy` and `smooth` are set."""
        n = len(self.distinct)
        low, high = _around(self.ranks)
        settled = np.bincount(self.codes[(self.ranks <= low) | (high <= self.ranks)], minlength=n)
        low, high = _around(self.codes)
        flats = np.bincount(self.codes[(low == self.codes) & (high == self.codes)], minlength=n)
        areas = (flats >= 9) & (flats >= 0.1 * self.counts)
        lines = settled >= 0.5 * self.counts
        if not self.coloured and n > 32:  # wide soft edges: hardly a step is large
            steps = abs(np.diff(self.distinct[self.codes], axis=1))
            self.smooth = bool((steps[steps > 0] <= self.scale / 16).mean() > 0.9)
        self.noisy = lossy or self.smooth or (~(areas | lines)).sum() > 16
        if self.smooth:
            return np.array([0, n - 1])
        if not self.noisy:
            if n > 4 and areas.any() and self.scale >= 64:  # overshoot beside an edge is a line too
                apart = [abs(self.colours - c).max(axis=1) for c in self.colours[areas]]
                lines &= np.min(apart, axis=0) > self.near
            areas |= lines
        if not areas.any():
            areas[np.argmax(self.counts)] = True
        chosen = np.flatnonzero(areas)
        if len(chosen) == 1:  # lines alone, with soft edges
            far = abs(self.colours - self.colours[chosen[0]]).max(axis=1) > 2 * self.near
            if far.any():
                weight = settled if self.coloured else np.arange(1, n + 1)
                chosen = np.append(chosen, np.argmax(np.where(far, weight, 0)))
        return chosen

    def _apart(self, chosen, distance):
        """Of labels nearer to each other than `distance`, the one with most pixels."""
        kept: list[int] = []
        for c in chosen:
            if all(abs(self.colours[c] - self.colours[k]).max() > distance for k in kept[:256]):
                kept.append(c)
        return np.array(kept)

    def _background(self, chosen):
        """The code of what is transparent, or of black; None where there is neither."""
        if self.visible is not None or self.distinct[0] == 0:
            return 0
        darkest = min(chosen, key=lambda c: self.colours[c].sum())
        return darkest if self.noisy and len(chosen) > 1 and self.colours[darkest].max() <= self.near else None

    def _is_picture(self):
        """Whether what is neither near a label nor background is more than the transitions at the edges of labels."""
        painted = [*self.objects, *([] if self.background is None else [self.background])]
        left = np.min([abs(self.colours - self.colours[c]).max(axis=1) for c in painted[:64]], axis=0) > self.near
        if not self.noisy or not left.any():
            return False
        front = self.counts[np.arange(len(self.counts)) != self.background].sum()
        share, alone = self.counts[left].sum() / front, len(self.objects) == 1
        if share > 0.002 and self.background is None and alone:
            return True
        if share > 0.5 and (not alone or self.background is None or share * front > 0.25 * self.codes.size):
            return True
        # Transitions rise and fall from one label to another; textures have peaks and pits, away from labels too.
        inner = _around(left[self.codes])[0]
        low, high = _around(self.ranks)
        if (inner & ((self.ranks < low) | (high < self.ranks))).sum() > 0.01 * front:
            return True
        if not alone or self.background is None or self.visible is not None:
            return False
        return self.counts[left & (self._mixture(self.objects[0])[1] > 2 * self.near)].sum() > 0.2 * front

    def _mixture(self, front):
        """For each distinct colour: how far it is on the way from the background to a label, and how far off that way."""
        begin = self.colours[self.background]
        way = self.colours[front] - begin
        share = (self.colours - begin) @ way / (way @ way)
        return share, abs(self.colours - begin - np.clip(share, 0, 1)[:, None] * way).max(axis=1)

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
        return (self._mixture(self.objects[0])[0] > 0.5)[self.codes]

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
        texts, example = [], "255"
        for c in self.objects[:256]:
            label = _shown(tuple(map(int, self.colours[c])))
            index = "" if indices is None else f"{indices.ravel()[np.argmax(self.codes == c)]} = "
            texts.append(f"{index}{label} ({100 * self.counts[c] / self.codes.size:.2g} %)")
            example = label if c == self.objects[0] else example
        return texts, example


def parse_label(label):
    """A label as a number, a colour or a name."""
    if label is None or isinstance(label, (int, np.integer)):
        return label if label is None else int(label)
    if isinstance(label, str):
        text = label.strip().strip("()")
        if text.startswith("#") and len(text) == 7:
            return tuple(bytes.fromhex(text[1:]))
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError:
            return label
        label = numbers
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
