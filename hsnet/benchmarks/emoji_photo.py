"""Training scenes whose statistics are nearer to photographs than those of `emoji`: for segmenting people's own pictures.

The drawings are the embedded benchmark's; what differs is all around them. A photograph has objects of any size, cut off by its
border and hidden by others, textures in which fine detail is weaker than coarse in a certain proportion, borders between
grounds, light that falls from one side, blur, noise and the traces of compression. Here all of these are drawn at random.
And two photographed things of one class are less alike than two drawings of one concept: so the target may be drawn from the
concept's whole family, a wolf for a dog, and in colours of its own.

How far all this goes is drawn for each episode, from the scenes of `emoji` as they are to the hardest: of the hardest alone a
network learns what objects look like, and hardly to compare.
"""

import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from . import scenes
from .base import Episode, register
from .emoji import Emoji
from .scenes import Place, Scene, hue_turn, paste, shows_target

LEVELS = 8  # of difficulty: 0 is a scene of `emoji`; below are the ranges of the highest
OBJECT_SIZE = (0.12, 1.6)  # longest side of an object over the side of the scene; uniform in its logarithm
MIDDLE = (0.15, 0.85)  # of an object, over the side of the scene
DISTRACTORS = (0, 5)  # least and most
TILT = 0.6  # radians at most; half of the objects are mirrored
HUE_SHIFT = np.pi  # radians at most, around the grey axis; small ones are frequent
GAIN = (0.5, 1.3)  # of brightness
SATURATION = (0.1, 1.2)  # of colours: those of drawings are stronger than those of things
# A scene is drawn again if its target covers less than this share of the scene, or shows less than this share of itself.
LEAST_VISIBLE = 0.006
LEAST_UNCOVERED = 0.25
SLOPE = (0.8, 1.6)  # amplitude of a texture's wave of frequency f: f^-slope; photographs have about 1


@register
class EmojiPhoto(Emoji):
    """`emoji` with training scenes that resemble photographs, of all concepts: no fold is held out.

    Validation and test ask the scenes of `emoji`, so the scores of both are comparable in their pictures; but here the concepts
    of those scenes were trained on.
    """

    name = title = "emoji-photo"
    summary = "trains all concepts in scenes nearer to photographs"
    preparation = ""  # the drawings are those of `emoji`

    def _classes(self, fold, split):
        return list(range(len(self.class_names))) if split == "train" else super()._classes(fold, split)

    def draw(self, rng: np.random.Generator, fold: int, shot: int = 1, place: int | None = None) -> Episode:
        """One training episode, all of whose scenes have one level of difficulty: the remainder of their keys."""
        episode, level = super().draw(rng, fold, shot, place), int(rng.integers(LEVELS))

        def at_level(name):
            start, _, key = name.rpartition(".")
            return f"{start}.{int(key) // LEVELS * LEVELS + level}"

        return replace(episode, query=at_level(episode.query), supports=tuple(map(at_level, episode.supports)))

    def scene(self, name: str) -> Scene:
        """Draw the scene called `name`; any member of its target's family may stand for the target."""
        strength = _strength(name)
        if not strength:
            return super().scene(name)
        class_id, artist, key = name.split(".")[2:]
        rng = np.random.default_rng([3, int(class_id), int(key)])
        target = int(class_id)
        if rng.random() < strength:
            target = int(rng.choice([c for c in sorted(self.related(target)) if artist in self.artists(c, "train")]))
        drawn = [(target, artist), *self.objects(name)[1:]]
        return compose(rng, [self.cutout(c, a, rng) for c, a in drawn], self.size, strength)

    def objects(self, name: str) -> list[tuple[int, str]]:
        """(class id, artist) of each object of a scene, the target first."""
        if not _strength(name):
            return super().objects(name)
        class_id, artist, key = name.split(".")[2:]
        rng = np.random.default_rng([4, int(class_id), int(key)])
        objects, taken = [(int(class_id), artist)], set(self.related(int(class_id)))
        for _ in range(rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1)):
            other = int(rng.integers(len(self.class_names)))
            if other not in taken:
                taken |= self.related(other)
                artists = self.artists(other, "train")
                objects.append((other, artists[rng.integers(len(artists))]))
        return objects


def _strength(name):
    """How far a scene is from those of `emoji`, 0 to 1."""
    split, *_, key = name.split(".")
    return int(key) % LEVELS / (LEVELS - 1) if split == "train" else 0.0


def _between(mild, hard, strength):
    """A range between two, in proportion."""
    return tuple(m + (h - m) * strength for m, h in zip(mild, hard, strict=True))


def compose(rng: np.random.Generator, sprites: list[np.ndarray], size: int, strength: float = 1.0) -> Scene:
    """Draw a scene of `size` pixels a side.

    Args:
        rng: decides everything.
        sprites: premultiplied uint8 RGBA (n, n, 4), the target first.
        strength: of all that makes it hard, 0 to 1.
    """
    for _ in range(20):  # the target may end up covered or outside
        places = [_place(rng, size, strength) for _ in sprites]
        order = rng.permutation(len(sprites))
        if shows_target(sprites, places, order, size, LEAST_VISIBLE, LEAST_UNCOVERED, border_hides=True):
            break
    textures = _texture(rng, size, 2)
    picture = np.clip(_ground(rng, size, textures), 0, 255).astype(np.uint8)
    labels = np.zeros((size, size), np.uint8)
    for i in order:
        paste(_relit(rng, sprites[i], textures[0], strength), places[i], picture, labels, i + 1)
    return Scene(_photographed(rng, picture, strength), labels)


def _place(rng, size, strength):
    side = size * np.exp(rng.uniform(*_between(np.log(scenes.OBJECT_SIZE), np.log(OBJECT_SIZE), strength)))
    x, y = rng.uniform(*MIDDLE, 2) * size
    return Place(x, y, side, rng.uniform(-TILT, TILT), int(rng.choice([-1, 1])))


def _texture(rng, size, planes):
    """Noise of (planes, size, size), mean 0, deviation 1, whose amplitude falls with the frequency as in photographs."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    # Waves that lie along one direction more than along another: grass, boards, cloth.
    stretch, angle = rng.uniform(1, 4), rng.uniform(0, np.pi)
    u, v = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    frequency = np.sqrt(u**2 + (stretch * v) ** 2)
    frequency[0, 0] = np.inf
    waves = rng.standard_normal((planes, *frequency.shape, 2), np.float32).view(np.complex64)[..., 0]
    noise = np.fft.irfft2(waves * frequency.astype(np.float32) ** -rng.uniform(*SLOPE), s=(size, size))
    return (noise / noise.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def _ground(rng, size, textures):
    """Two to four textured grounds with borders between them; float32 (3, size, size)."""
    picture = None
    for _ in range(int(rng.integers(2, 5))):
        # Most things are greyish; the textures of a scene are moved about, which is cheaper than to draw more of them.
        grey, colour = rng.uniform(20, 235), rng.uniform(20, 235, 3)
        colour = grey + rng.uniform(0, 0.8) * (colour - grey)
        fine, other = (np.roll(texture, rng.integers(size, size=2), (0, 1)) for texture in textures)
        tint = rng.uniform(-0.4, 0.4, 3)[:, None, None]
        layer = (colour[:, None, None] + rng.uniform(5, 45) * (fine + tint * other)).astype(np.float32)
        if picture is None:
            picture = layer
            continue
        # A border: straight, bent by a texture, or a blob of one.
        angle, ramp = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, size, dtype=np.float32)
        line = np.cos(angle) * ramp[:, None] + np.sin(angle) * ramp[None]
        behind = line * rng.choice([0, 1, 3]) + _coarse(fine) * rng.uniform(0.2, 1) > rng.uniform(-0.7, 0.7)
        picture = np.where(behind, layer, picture)
    return picture


def _coarse(texture):
    """Its coarse part alone."""
    size = len(texture)
    small = Image.fromarray(texture).resize((max(2, size // 24),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def _relit(rng, sprite, texture, strength):
    """A cut-out with other colours, a texture of its own, and light from one side; premultiplied RGBa."""
    rgb, alpha = sprite[..., :3].astype(np.float32), sprite[..., 3:].astype(np.float32)
    angle = strength * HUE_SHIFT * rng.uniform(-1, 1) ** 3
    grey = np.full((3, 3), 1 / 3)
    saturation = rng.uniform(*_between((1, 1), SATURATION, strength))
    rgb = rgb @ ((saturation * np.eye(3) + (1 - saturation) * grey) @ hue_turn(angle)).T.astype(np.float32)
    n = len(sprite)
    ramp, light = np.linspace(-1, 1, n, dtype=np.float32), rng.uniform(0, 2 * np.pi)
    shade = 1 + rng.uniform(0, 0.5 * strength) * (np.cos(light) * ramp[:, None] + np.sin(light) * ramp[None])
    texture = np.roll(texture, rng.integers(len(texture), size=2), (0, 1))
    texture = np.pad(texture, (0, max(0, n - len(texture))), mode="wrap")[:n, :n]
    shade = shade * (1 + rng.uniform(0, 0.5 * strength) * texture) * rng.uniform(*_between((1, 1), GAIN, strength))
    rgb = np.clip(rgb * shade[..., None], 0, alpha)
    return Image.frombuffer("RGBa", (n, n), np.concatenate([rgb, alpha], axis=-1).astype(np.uint8))


def _photographed(rng, picture, strength):
    """Three planes as a camera would have them: a cast, a contrast, blur, noise, compression; (size, size, 3)."""
    planes = picture.astype(np.float32)
    cast = rng.uniform(0.85, 1.15, (3, 1, 1))
    planes = 128 + (planes * cast - 128) * rng.uniform(0.6, 1.1) + rng.uniform(-25, 25)
    image = Image.fromarray(np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0))
    if rng.random() < 0.6 * strength:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    pixels = np.asarray(image).astype(np.float32)
    pixels += rng.uniform(0, 8) * rng.standard_normal(pixels.shape, np.float32)
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(40, 95)))
        pixels = np.asarray(Image.open(file))
    return np.ascontiguousarray(pixels)
