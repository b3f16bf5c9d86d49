"""Scenes composed of cut-out drawings: objects that overlap on a procedural background.

What `shapes` and `emoji` share. Every number a scene depends on stands in this file or comes from the random generator
it is given, so that the test scenes of a benchmark are the same on every machine.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops

OBJECT_SIZE = (0.35, 0.8)  # longest side of an object over the side of the scene; uniform in its logarithm
DISTRACTORS = (1, 4)  # least and most
MARGIN = 0.15  # an object's centre stays this far inside, in sides
HUE_SHIFT = 0.25  # radians at most, around the grey axis
GAIN = (0.8, 1.2)  # of brightness
TILT = 0.35  # radians at most; half of the objects are mirrored
GRAIN = 24  # noise of the background, grey levels at most
# A scene is drawn again if its target covers less than this share of the scene, or shows less than this share of itself.
LEAST_VISIBLE = 0.02
LEAST_UNCOVERED = 0.6


@dataclass(frozen=True)
class Scene:
    """A picture with its objects.

    Attributes:
        image: uint8 RGB (size, size, 3).
        labels: uint8 (size, size): 0 background, i the visible part of object i - 1, the first object being the target.
    """

    image: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Place:
    """Where an object lies: its centre and side in pixels, its tilt in radians, 1 or -1 for mirrored."""

    x: float
    y: float
    side: float
    angle: float
    mirror: int

    def matrix(self, n, x0=0, y0=0, step=1):
        """PIL asks where each output pixel comes from: move to the centre, turn back, mirror back, scale to n pixels."""
        c, s = np.cos(self.angle) * n / self.side, np.sin(self.angle) * n / self.side
        dx, dy = x0 - self.x, y0 - self.y
        m = self.mirror
        return (m * c * step, m * s * step, m * (c * dx + s * dy) + n / 2, -s * step, c * step, c * dy - s * dx + n / 2)


def compose(rng: np.random.Generator, sprites: list[np.ndarray], size: int) -> Scene:
    """Draw a scene of `size` pixels a side.

    Args:
        rng: decides background, places, sizes, colours and which object lies over which.
        sprites: premultiplied uint8 RGBA (n, n, 4), the target first.
    """
    for _ in range(20):  # the target may end up covered or outside
        places = [_place(rng, size) for _ in sprites]
        order = rng.permutation(len(sprites))
        if _shows_target(sprites, places, order, size):
            break
    image = _background(rng, size)  # three planes: arithmetic on long rows is faster than on RGB triples
    labels = np.zeros((size, size), np.uint8)
    for i in order:
        _paste(_recolour(rng, sprites[i]), places[i], image, labels, i + 1)
    return Scene(np.ascontiguousarray(image.transpose(1, 2, 0)), labels)


def _place(rng, size):
    side = size * np.exp(rng.uniform(*np.log(OBJECT_SIZE)))
    x, y = rng.uniform(MARGIN, 1 - MARGIN, 2) * size
    return Place(x, y, side, rng.uniform(-TILT, TILT), int(rng.choice([-1, 1])))


def _shows_target(sprites, places, order, size):
    """Whether enough of the target shows, seen on every fourth pixel: drawing in full only to throw away would be slow."""
    n, target, area = size // 4, None, 0
    for i in order:  # from the bottom to the top
        if target is None and i != 0:
            continue  # below the target
        alpha = Image.fromarray(sprites[i][::4, ::4, 3])
        drawn = alpha.transform((n, n), Image.Transform.AFFINE, places[i].matrix(alpha.width, step=4))
        inside = np.asarray(drawn) >= 128
        if i == 0:
            target, area = inside, np.count_nonzero(inside)
        else:
            target = target & ~inside
    visible = np.count_nonzero(target)
    return visible >= LEAST_VISIBLE * n**2 and visible >= LEAST_UNCOVERED * area


def _paste(drawing, place, image, labels, label):
    """Draw one object over what is there."""
    size = labels.shape[0]
    # Only the part of the scene that the turned square can reach.
    reach = place.side / 2 * (abs(np.cos(place.angle)) + abs(np.sin(place.angle)))
    x0, x1 = max(int(place.x - reach), 0), min(int(place.x + reach) + 2, size)
    y0, y1 = max(int(place.y - reach), 0), min(int(place.y + reach) + 2, size)
    matrix = place.matrix(drawing.width, x0, y0)
    drawn = drawing.transform((x1 - x0, y1 - y0), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    *colours, alpha = (np.asarray(plane) for plane in drawn.split())
    through = (255 - alpha).astype(np.uint16)
    through += through >> 7  # 0 to 256, so that a shift divides
    for plane, colour in zip(image[:, y0:y1, x0:x1], colours, strict=True):
        plane[:] = (plane * through >> 8).astype(np.uint8) + colour
    labels[y0:y1, x0:x1][alpha >= 128] = label


def _recolour(rng, sprite):
    """A turn of the hue around the grey axis and a gain: a 3 × 3 matrix on premultiplied colours, clipped to alpha."""
    angle, gain = rng.uniform(-HUE_SHIFT, HUE_SHIFT), rng.uniform(*GAIN)
    c, s = np.cos(angle), np.sin(angle) / np.sqrt(3)
    turn = np.full((3, 3), (1 - c) / 3) + c * np.eye(3) + s * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    matrix = np.concatenate([gain * turn, np.zeros((3, 1))], axis=1)
    # "RGBa" is premultiplied, so that edges mix without halos.
    *colours, alpha = Image.frombuffer("RGBa", sprite.shape[:2], sprite).split()
    colours = Image.merge("RGB", colours).convert("RGB", tuple(matrix.flatten())).split()
    return Image.merge("RGBa", [*(ImageChops.darker(plane, alpha) for plane in colours), alpha])


def _background(rng, size):
    """A gradient between two colours, soft patches of a third, and fine grain."""
    coarse = size // 4  # nothing but the grain has detail: a quarter of the size is enough until the end
    first, second, third = rng.uniform(GRAIN, 255 - GRAIN, (3, 3)).astype(np.float32)
    ramp = np.linspace(0, 1, coarse, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    gradient = np.cos(angle) * ramp[:, None] + np.sin(angle) * ramp[None]
    gradient = (gradient - gradient.min()) / np.ptp(gradient)
    side = int(rng.integers(2, 12))
    patches = Image.fromarray(rng.uniform(-1, 1, (side, side)).astype(np.float32))
    patches = patches.resize((coarse, coarse), Image.Resampling.BICUBIC)
    patches = np.clip(np.asarray(patches) * rng.uniform(0.5, 4), 0, 1) * rng.uniform(0.2, 1)
    mix = (1 - patches) * gradient
    picture = first + mix[..., None] * (second - first) + patches[..., None] * (third - first)
    picture = Image.fromarray(picture.astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)
    strength = rng.integers(0, GRAIN + 1)
    grain = rng.integers(-strength, strength + 1, (size, size), np.int8).view(np.uint8)
    # Sums modulo 256 are right: the colours keep GRAIN away from both ends.
    return np.stack([np.asarray(plane) + grain for plane in picture.split()])
