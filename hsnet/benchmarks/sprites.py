"""The drawings of the emoji benchmark: seven artists, one small picture of each concept by each of them.

The list of concepts is tracked (`data/emoji/concepts.csv`); the drawings are fetched with npm at first use, which takes
about a minute, and cached; `python -m hsnet.prepare emoji` does it beforehand.
"""

import csv
import hashlib
import io
import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..paths import SHIPPED
from ..prepare.downloads import fetch_npm

CONCEPTS_FILE = SHIPPED / "emoji" / "concepts.csv"
SPRITE_SIZE = 160
# Raised when the code below draws differently, so that older caches are rebuilt and older scores differ in their digest.
RENDERING = 1


class IconSet(NamedTuple):
    """One artist's drawings: the npm package `@iconify-json/<name>` and the sha256 of its tarball as published."""

    name: str
    version: str
    licence: str
    maker: str
    sha256: str

    @property
    def package(self) -> str:
        return f"@iconify-json/{self.name}@{self.version}"


with (SHIPPED / "emoji" / "sets.csv").open(newline="", encoding="utf-8") as _file:
    SETS = tuple(IconSet(**row) for row in csv.DictReader(_file))
ATTRIBUTION = (
    "Emoji: Noto and Noto v1 (Google, Apache-2.0), Twemoji (Twitter, CC BY 4.0), Fluent Emoji Flat (Microsoft, MIT), "
    "Firefox OS Emoji (Mozilla, Apache-2.0), Emoji One (CC BY 4.0), Streamline Emojis (Streamline, CC BY 4.0); "
    "cropped and resized."
)


@dataclass(frozen=True)
class Concept:
    """One thing drawn by several artists. `drawings` maps a set's name to the name of the icon in it."""

    id: int
    name: str
    group: str
    family: str
    fold: int
    drawings: dict[str, str]


def load_concepts() -> list[Concept]:
    """All concepts in the order of their ids (0 … n-1), from the tracked list; each is drawn in at least five sets."""
    with CONCEPTS_FILE.open(newline="", encoding="utf-8") as file:
        return [
            Concept(
                id=int(row["id"]),
                name=row["name"],
                group=row["group"],
                family=row["family"],
                fold=int(row["fold"]),
                drawings={icons.name: row[icons.name] for icons in SETS if row[icons.name]},
            )
            for row in csv.DictReader(file)
        ]


def prepare_sprites(folder: Path, progress: bool = True) -> Path:
    """Make sure that `folder` holds the sprites of the present list of concepts, and return their array file.

    Writes `sprites.npy`, uint8 (drawings, 160, 160, 4), colours premultiplied by alpha, in the order of `drawings()`, and
    `sprites.json`, the digest of what they were drawn from. Returns at once where both are there and of the present digest.

    Raises:
        ConnectionError: npm or a package cannot be reached, or a package is not as published.
    """
    if are_prepared(folder):
        return folder / "sprites.npy"
    folder.mkdir(parents=True, exist_ok=True)
    # Everything is made in a folder of this process and renamed when complete: an interruption leaves no half cache,
    # and two processes that prepare at once each rename the same content into place.
    with tempfile.TemporaryDirectory(dir=folder, prefix="preparing-") as scratch:
        collections = {}
        for icons in tqdm(SETS, "fetching emoji", unit="package", disable=not progress):
            try:
                tarball = fetch_npm(icons.package, icons.sha256, folder / "packages")
            except ConnectionError as error:
                raise ConnectionError(f"{error}. Or use --benchmark shapes, which needs no download.") from error
            with tarfile.open(tarball) as archive:
                collections[icons.name] = json.load(archive.extractfile("package/icons.json"))
        rows = drawings()
        array_file, index_file = Path(scratch) / "sprites.npy", Path(scratch) / "sprites.json"
        shape = (len(rows), SPRITE_SIZE, SPRITE_SIZE, 4)
        sprites = np.lib.format.open_memmap(array_file, mode="w+", dtype=np.uint8, shape=shape)
        for row, (_, name, icon) in enumerate(tqdm(rows, "rendering emoji", unit="drawing", disable=not progress)):
            sprites[row] = render_sprite(icon_svg(collections[name], icon))
        sprites.flush()
        index_file.write_text(json.dumps({"digest": drawings_digest()}), encoding="utf-8")
        # The index vouches for the array: an outdated one goes before the new array comes, and the new one comes last.
        (folder / "sprites.json").unlink(missing_ok=True)
        array_file.replace(folder / "sprites.npy")
        index_file.replace(folder / "sprites.json")
    return folder / "sprites.npy"


def drawings() -> list[tuple[int, str, str]]:
    """Concept, set and icon of every drawing."""
    return [(concept.id, name, icon) for concept in load_concepts() for name, icon in concept.drawings.items()]


def icon_svg(collection: dict, name: str) -> str:
    """One icon of a set's `icons.json` as a complete svg text; its canvas is the icon's, else the set's, else 16 × 16."""
    icon = collection["icons"][name]
    width, height = (icon.get(side, collection.get(side, 16)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )


def render_sprite(svg: str) -> np.ndarray:
    """Draw an svg, crop it to what is opaque, and fit it into the sprite's square, centred, its proportions kept.

    Returns uint8 (160, 160, 4): red, green, blue premultiplied by alpha (so never above it), and alpha.
    Raises ValueError if nothing in the drawing is opaque.
    """
    picture, box = _draw(svg, width=256)
    longest = max(box[2] - box[0], box[3] - box[1])
    if longest < 1.25 * SPRITE_SIZE:  # a small thing on a large canvas: draw it larger rather than blow it up
        picture, box = _draw(svg, width=min(4096, 256 * 256 // longest))
    scale = SPRITE_SIZE / max(box[2] - box[0], box[3] - box[1])
    width, height = (max(1, round(scale * (box[k + 2] - box[k]))) for k in (0, 1))
    fitted = np.asarray(picture.crop(box).resize((width, height), Image.Resampling.LANCZOS))
    top, left = (SPRITE_SIZE - height) // 2, (SPRITE_SIZE - width) // 2
    sprite = np.zeros((SPRITE_SIZE, SPRITE_SIZE, 4), np.uint8)
    sprite[top : top + height, left : left + width] = np.minimum(fitted, fitted[..., 3:])  # Lanczos can overshoot
    return sprite


def _draw(svg: str, width: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The svg as a premultiplied picture, and the box (left, top, right, bottom) of its opaque pixels."""
    import resvg_py  # here, so that reading the list of concepts needs no renderer

    pixels = np.array(Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width)))).convert("RGBa"))
    pixels[pixels[..., 3] < 64] = 0  # the faint shadow some artists put on the ground is no part of the thing
    rows, columns = (np.flatnonzero((pixels[..., 3] >= 128).any(axis)) for axis in (1, 0))
    if len(rows) == 0:
        raise ValueError("nothing in it is opaque")
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return Image.frombuffer("RGBa", (pixels.shape[1], pixels.shape[0]), pixels.tobytes(), "raw", "RGBa", 0, 1), box


class Sprites:
    """The cached drawings in `folder`, prepared first if need be (raises ConnectionError as `prepare_sprites` does)."""

    def __init__(self, folder: Path, progress: bool = True):
        self.folder = Path(folder)
        self._array = np.load(prepare_sprites(self.folder, progress), mmap_mode="r")
        self._rows = {(concept_id, name): row for row, (concept_id, name, _) in enumerate(drawings())}

    def __reduce__(self):
        # A worker process opens the file again; pickling the memory map would copy the whole array.
        return Sprites, (self.folder,)

    def image(self, concept_id: int, set_name: str) -> np.ndarray:
        """uint8 (160, 160, 4), premultiplied, read-only: a view of the file. Raises KeyError if there is none."""
        return self._array[self._rows[concept_id, set_name]]


def drawings_digest() -> str:
    """What the cache depends on: the list of concepts, the packages, and how drawings are made."""
    rest = [icons.package for icons in SETS] + [icons.sha256 for icons in SETS] + [str(SPRITE_SIZE), str(RENDERING)]
    return hashlib.sha256(CONCEPTS_FILE.read_bytes() + " ".join(rest).encode()).hexdigest()


def are_prepared(folder: Path) -> bool:
    """Whether `folder` holds the sprites of the present list of concepts."""
    array, index = folder / "sprites.npy", folder / "sprites.json"
    return array.exists() and index.exists() and json.loads(index.read_text())["digest"] == drawings_digest()
