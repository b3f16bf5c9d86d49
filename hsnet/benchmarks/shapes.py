"""The benchmark `shapes`: textured figures with parts, drawn by code, for tests and machines without a network.

A class is a recipe (outline, texture, colours, parts and where they sit); an artist is a way of drawing it; an instance
varies the recipe a little.
"""

from functools import cache

import numpy as np

from .base import register
from .drawn import DrawnBenchmark

CLASSES = [f"shape {i}" for i in range(48)]
ARTISTS = ("flat", "outlined", "shaded", "grainy")
RESOLUTION = 128  # of a cut-out
TEXTURES = ("plain", "stripes", "rings", "checks", "dots")


@register
class Shapes(DrawnBenchmark):
    """48 classes in four folds of 12, of which 4 validate and 8 test."""

    name = "shapes"
    class_names = CLASSES

    def artists(self, class_id: int, split: str) -> list[str]:
        """Every artist draws every class."""
        return list(ARTISTS)

    def cutout(self, class_id: int, artist: str, rng: np.random.Generator) -> np.ndarray:
        """Draw an instance of the class: premultiplied uint8 RGBA (128, 128, 4)."""
        colour = np.zeros((RESOLUTION, RESOLUTION, 3), np.float32)
        alpha = np.zeros((RESOLUTION, RESOLUTION), np.float32)
        y, x = np.mgrid[-1 : 1 : RESOLUTION * 1j, -1 : 1 : RESOLUTION * 1j].astype(np.float32)
        for part in recipe(class_id):
            px, py, size = np.array([part["x"], part["y"], part["size"]]) * rng.uniform(0.92, 1.08, 3)
            u, v = (x - np.float32(px)) / np.float32(size), (y - np.float32(py)) / np.float32(size)
            inside = _outline(part, u, v, rng)
            cover = np.clip(inside * size * RESOLUTION / 2 + 0.5, 0, 1)  # one pixel of soft edge
            fill = _texture(part, u, v, rng)
            if artist == "outlined":
                fill = fill * np.clip(np.abs(inside) * size * RESOLUTION / 8, 0.15, 1)[..., None]
            elif artist == "shaded":
                fill = fill * np.clip(1 - 0.45 * (u + v), 0.35, 1.5)[..., None]
            elif artist == "grainy":
                fill = fill + rng.normal(0, 0.12, fill.shape).astype(np.float32)
            colour += cover[..., None] * (np.clip(fill, 0, 1) - colour)
            alpha += cover * (1 - alpha)
        rgba = np.concatenate([np.minimum(colour, alpha[..., None]), alpha[..., None]], axis=-1)
        return (255 * rgba + 0.5).astype(np.uint8)


@cache
def recipe(class_id: int) -> tuple[dict, ...]:
    """The parts of a class, the body first: where, how large, which outline, texture and colours."""
    rng = np.random.default_rng([20211011, class_id])
    parts = [_part(rng, 0.0, 0.0, rng.uniform(0.5, 0.65))]
    for _ in range(rng.integers(1, 4)):
        angle = rng.uniform(0, 2 * np.pi)
        part = _part(rng, 0.55 * np.cos(angle), 0.55 * np.sin(angle), rng.uniform(0.18, 0.34))
        parts.append(part)
        if rng.random() < 0.5:  # a pair, left and right: ears, wheels
            parts.append({**part, "x": -part["x"]})
    return tuple(parts)


def _part(rng, x, y, size):
    return {
        "x": x,
        "y": y,
        "size": size,
        "corners": int(rng.integers(2, 7)),  # of the outline; 2 is an ellipse
        "depth": rng.uniform(0.1, 0.5),
        "turn": rng.uniform(0, 2 * np.pi),
        "stretch": rng.uniform(0.65, 1.5),
        "texture": TEXTURES[rng.integers(len(TEXTURES))],
        "frequency": rng.uniform(2, 5),
        "colours": rng.uniform(0, 1, (2, 3)).astype(np.float32),
    }


def _outline(part, u, v, rng):
    """Signed distance (roughly) to a star-like outline, positive inside, in units of the part's size."""
    u, v = u * part["stretch"], v / part["stretch"]
    angle = np.arctan2(v, u) + part["turn"] + rng.uniform(-0.15, 0.15)
    depth = part["depth"] * rng.uniform(0.85, 1.15) * (part["corners"] > 2)
    return 1 - depth / 2 * (1 - np.cos(part["corners"] * angle)) - np.hypot(u, v)


def _texture(part, u, v, rng):
    phase, frequency = np.float32(rng.uniform(0, 1)), np.float32(part["frequency"] * np.pi)
    if part["texture"] == "plain":
        return part["colours"][0] + np.zeros((*u.shape, 1), np.float32)
    if part["texture"] == "rings":
        mix = np.sin(frequency * np.hypot(u, v) + phase)
    elif part["texture"] == "stripes":
        mix = np.sin(frequency * u + phase)
    else:
        wave_u, wave_v = np.sin(frequency * u + phase), np.sin(frequency * v + phase)
        mix = wave_u * wave_v if part["texture"] == "checks" else 0.6 - np.hypot(wave_u, wave_v)
    mix = np.clip(4 * mix + 0.5, 0, 1)[..., None]
    return (1 - mix) * part["colours"][0] + mix * part["colours"][1]
