"""Images and masks as users have them: files of any kind, PIL images, arrays. Each of them means:

| File or values | Meaning |
|---|---|
| one value or colour beside black (floats: 0 to 1) | the object; soft edges are thresholded at half |
| several values or colours beside black | refused, with a list of them and their shares; `--label` selects one |
| 255 and one other label beside black | refused, because 255 may be the object or void; `--label` selects one |
| several values or colours without black | refused; `--label` selects the object |
| an alpha channel, or a transparent colour, that varies | the opaque part is the object; if it has several colours, they are listed |
| an alpha channel that is the same everywhere | ignored; the colours count |
| a palette | its colours; `--label` takes an index or a colour |
| booleans, 0 and 1, 0 and 255 | every non-zero value is the object |
| numbers below 0, floats above 1 | refused; pass `logits > 0` or `probabilities > 0.5` |
| a photograph as a mask, cut out on black or not | refused; a mask is white on the object |
| `.json` of labelme or COCO | the union of the shapes of one label; several labels are listed by name |
| `.npy` | its array |
| a rotation or mirroring in EXIF | applied; `--exif ignore` uses the pixels as stored (TIFF is always rotated) |
| an image and a mask with different EXIF orientations | a warning, if the mask fits the rotated and the stored image |
| an image with transparent parts and no mask | a cut-out: the opaque part is the object, and the rest becomes grey |
| a grey image of 16 or 32 bits | read as 10, 12, 14, 16, … bits, depending on its largest value, with a warning |
| a file in a folder that is not used | reported with the reason |
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from .labels import Label, Labels, parse_label

Picture = str | Path | Image.Image | np.ndarray

# Always tried in a folder, even if damaged.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
CONVERT = {  # what people have and Pillow does not read
    (".heic", ".heif"): "HEIC: convert it to JPEG, or install pillow-heif and call its register_heif_opener()",
    (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"): "raw data of a camera: develop it to JPEG or PNG",
    (".svg", ".pdf", ".ai", ".eps"): "a drawing, not pixels: export it as PNG",
    (".xml", ".txt", ".yaml", ".csv"): "annotations that are not read: export them as COCO json, or as PNG masks",
    (".mat", ".npz", ".pkl", ".pt", ".h5"): "an archive of arrays: save the image or mask with numpy.save, as .npy",
    (".mp4", ".mov", ".avi", ".mkv"): "a film: save single frames",
}
EXIFS = ("apply", "ignore")
DEPTHS = (8, 10, 12, 14, 16, 24, 32, 64)  # bits of the numbers in a picture
BEHIND = 127  # grey behind a transparent picture, nearest to what "nothing" is to a network
_ORIENTATION = 0x0112


class Stored(NamedTuple):
    """What a file, an image or an array holds.

    Attributes:
        name: how a message names it.
        values: (h, w), or (h, w, c) of grey and alpha, RGB, or RGB and alpha; of any kind of number.
        size: height and width of all of it, upright; `values` is smaller where a draft was asked for.
        turn: its EXIF orientation, 1 to 8; 1 for none.
        indices: of a palette, (h, w); otherwise None.
        lossy: whether its values were changed in storing, as JPEG does.
    """

    name: str
    values: np.ndarray
    size: tuple[int, int]
    turn: int = 1
    indices: np.ndarray | None = None
    lossy: bool = False


def read_image(
    picture: Picture, least: int | None = None, exif: str = "apply"
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """A picture as uint8 RGB, upright, with its own height and width.

    Args:
        picture: a file, a PIL image, or an array (h, w) or (h, w, c) of grey and alpha, RGB, or RGB and alpha: integers,
            or floats in [0, 1]. Transparent parts become grey; numbers above 255 are scaled, see the table above.
        least: sides that are enough: a JPEG is then decoded at a half, a quarter or an eighth of its size as long as
            both its sides stay at or above this, which spares most of the time and memory of a large photograph.
        exif: "apply" turns the picture as its EXIF says, "ignore" takes it as it is stored.

    Returns:
        The image, perhaps smaller than the picture, and the picture's own (height, width).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, not a picture, a damaged one, or an array of another kind, naming it.
    """
    return image_of(stored := load(picture, least, exif)), stored.size


def image_of(stored: Stored) -> UInt8[np.ndarray, "h w 3"]:
    """`read_image` of what `load` returned."""
    colours, alpha = _split(_eight_bits(stored))
    if colours.ndim == 2:
        colours = np.repeat(colours[..., None], 3, axis=2)
    if is_cutout(stored):
        weight = alpha[..., None] / np.float32(255)
        colours = np.round(colours * weight + BEHIND * (1 - weight)).astype(np.uint8)
    return np.ascontiguousarray(colours)


def is_cutout(stored: Stored) -> bool:
    """Whether its alpha channel varies: some of it is opaque, some transparent."""
    alpha = _split(stored.values)[1]
    if alpha is None or (alpha.dtype.kind in "bui" and alpha.max() <= 1):
        return False
    return bool(2 * float(alpha.min()) < float(alpha.max()))


def opaque(stored: Stored) -> Bool[np.ndarray, "h w"]:
    """The pixels of a cut-out that are more opaque than half of its most opaque ones."""
    alpha = _split(stored.values)[1]
    return alpha > alpha.max() / 2


def read_mask(
    picture: Picture | Stored,
    label: Label | None = None,
    *,
    exif: str = "apply",
    of: UInt8[np.ndarray, "_h _w 3"] | None = None,
) -> Bool[np.ndarray, "h w"]:
    """A mask as booleans, True on the object. The table above says what each kind of file and array means.

    Args:
        picture: a file, a PIL image, an array, or what `load` has read of one.
        label: the value, colour (r, g, b), or index of a palette, that is the object; as text too: "255,0,0".
        exif: as in `read_image`.
        of: the picture, so that its own pixels on black are not taken for a mask.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a mask of one object, with the labels that can be picked.
    """
    stored = picture if isinstance(picture, Stored) else load(picture, exif=exif, frames=1)
    name, values, label = stored.name, stored.values, parse_label(label)
    if isinstance(label, str):
        raise ValueError(f"{name} has no label named {label!r}: give a value (3) or a colour (255,0,0)")
    visible = opaque(stored) if is_cutout(stored) else None
    values = _numbers(name, _split(values)[0], label)
    if values.dtype == bool and values.ndim == 2 and visible is None and label is None:
        return values
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    indices = stored.indices
    if indices is not None and isinstance(label, int):
        if not (indices == label).any():
            raise ValueError(f"{name} has no pixel of index {label}: it holds {_some(np.unique(indices))}")
        return indices == label
    labels = Labels(values, visible, stored.lossy)
    if label is not None:
        return labels.pick(name, label)
    found = labels.the_object()
    if found is None and labels.is_picture and visible is not None:  # a cut-out photograph
        return visible
    if labels.is_picture or (found is not None and visible is None and of is not None and _is_part(values, found, of)):
        raise ValueError(
            f"{name} looks like a photograph, not a mask ({counted(len(labels.distinct), 'colour')}). A mask is "
            "white on the object and black elsewhere. Convert probabilities by `probabilities > 0.5`; save a cut-out with "
            "a transparent background, not on black"
        )
    if found is None:
        hint = "" if labels.background is not None or visible is not None else ", none of them black, the background"
        choices, example = labels.choices(indices)
        raise ValueError(
            f"{name} holds {counted(len(choices), 'label')}{hint}: {', '.join(choices[:8])}{', …' * (len(choices) > 8)}. "
            f"Pick the object with --label {example} (in Python label={example if ',' not in example else f'({example})'})"
        )
    return found


def looks_inverted(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether a mask more likely marks what is around the object: more than 95 % of the picture, or more than half of
    each of its four borders (a cut-out may touch all four with its object, at a few pixels)."""
    borders = mask[0], mask[-1], mask[:, 0], mask[:, -1]
    return bool(mask.mean() > 0.95 or min(border.mean() for border in borders) > 0.5)


def describe(picture: Picture) -> str:
    """How an error names a picture."""
    if isinstance(picture, (str, Path)):
        return str(picture)
    return f"the {'array' if isinstance(picture, np.ndarray) else 'image'}"


def counted(n: int, thing: str) -> str:
    """ "1 mask", "2 masks"."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def find_pictures(paths: list[str | Path]) -> tuple[list[Path], list[str]]:
    """Files as they are given, folders and patterns (`*.jpg`) replaced by the pictures in them, sorted by name, each once.

    Returns:
        The files; and one line on each group of files in the folders that is not used, with the reason.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without pictures.
    """
    found: dict[Path, Path] = {}
    unused = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            others: dict[str, list[Path]] = {}
            for file in sorted(path.iterdir()):
                others.setdefault(_why_not(file), []).append(file)
            inside = others.pop("", [])
            names = {reason: _some(file.name for file in files) for reason, files in others.items()}
            lines = [f"not used in {path}: {files} ({reason})" for reason, files in names.items()]
            if not inside:
                raise FileNotFoundError("; ".join([f"no images in {path}", *lines]))
            unused += lines
        elif not path.exists():
            inside = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if "*" in str(path) else []
            if not inside:
                raise FileNotFoundError(f"no such image or folder: {path}")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values()), unused


def _why_not(file):
    """Why a file in a folder is not used; empty if it is."""
    if file.is_dir():
        return "a folder: give it as well"
    if file.name.startswith("."):
        return "hidden"
    if file.suffix.lower() in SUFFIXES:
        return ""
    try:
        with Image.open(file):
            return ""
    except Exception:  # Pillow raises many kinds for what it does not know
        return _how_to_convert(file) or "not an image"


def _how_to_convert(file):
    return next((why for kinds, why in CONVERT.items() if file.suffix.lower() in kinds), None)


def load(picture: Picture, least: int | None = None, exif: str = "apply", frames: int | None = None) -> Stored:
    """What a file, an image or an array holds, turned as `exif` says; the other arguments as in `read_image`.

    Args:
        frames: how many pictures a file may hold; None for any number, of which the first is read.

    Raises:
        As `read_image`.
    """
    if exif not in EXIFS:
        raise ValueError(f"unknown exif {exif!r}: choose one of {', '.join(EXIFS)}")
    name = describe(picture)
    if isinstance(picture, np.ndarray):
        return _of_array(name, picture)
    if isinstance(picture, Image.Image):
        return _of_image(name, picture, picture.size, exif)
    if not isinstance(picture, (str, Path)):
        raise ValueError(f"an image cannot be a {type(picture).__name__}: give a path, a PIL image or an array")
    path = Path(picture)
    if not path.exists():
        raise FileNotFoundError(f"no such image: {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give its images, see `hsnet.pictures.find_pictures`")
    try:
        if path.suffix.lower() == ".npy":
            return _of_array(name, np.load(path, allow_pickle=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # 90 megapixels and more: meant
            with Image.open(path) as image:
                number = getattr(image, "n_frames", 1)
                own = image.size
                if least:
                    image.draft(None, (least, least))
                stored = _of_image(name, image, own, exif)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error}): make it smaller first") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError) as error:  # Pillow's, of damaged files
        why = _how_to_convert(path) or f"or damaged ({error})"
        raise ValueError(f"{path} is not an image that can be read, {why}") from error
    if frames and number > frames:
        raise ValueError(f"{path} contains {number} images: save the mask as a file with one image")
    return stored


def _of_array(name, array):
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    elif array.ndim == 3 and array.shape[0] == 1 and array.shape[2] > 4:
        array = array[0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)) or 0 in array.shape:
        hint = ": its channels come last here" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ValueError(f"{name} has shape {array.shape}, expected (h, w), (h, w, 3) or (h, w, 4){hint}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} holds {array.dtype}, expected booleans, integers or floats")
    return Stored(name, array, array.shape[:2])


def _of_image(name, image, own, exif):
    """`own`: the width and height of the file, where `image` is a draft."""
    turn, kind = image.getexif().get(_ORIENTATION, 1), image.format
    if exif == "apply" and kind != "TIFF":  # which Pillow turns by itself
        image, own = ImageOps.exif_transpose(image), own[::-1] if turn > 4 else own
    indices = np.asarray(image) if image.mode == "P" else None
    return Stored(name, _values(image), own[::-1], turn, indices, lossy=kind == "JPEG")


def _values(image):
    """The numbers of an image, in the forms that `Stored.values` has."""
    if "transparency" in image.info and image.mode in ("1", "L", "RGB", "P"):
        return np.asarray(image.convert("RGBA"))
    if image.mode in ("1", "L", "LA", "RGB", "RGBA", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    alpha = image.mode in ("PA", "La", "RGBa") or (image.mode == "P" and image.palette.mode == "RGBA")
    return np.asarray(image.convert("RGBA" if alpha else "RGB"))


def _split(values):
    """Grey (h, w) or RGB (h, w, 3), and the alpha channel or None."""
    if values.ndim == 2 or values.shape[2] == 3:
        return values, None
    return (values[..., 0] if values.shape[2] == 2 else values[..., :3]), values[..., -1]


def _eight_bits(stored):
    """The values of a picture as uint8, scaled by the depth that they need."""
    values, name = stored.values, stored.name
    least, most = values.min(), values.max()
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype.kind == "f":
        if not (least >= 0 and most <= 1):
            raise ValueError(f"{name} holds floats from {least} to {most}, expected [0, 1] (or integers from 0 to 255)")
        return np.round(values * 255).astype(np.uint8)
    if least < 0:
        raise ValueError(f"{name} holds integers from {least} to {most}, expected 0 or more")
    depth = next(depth for depth in DEPTHS if most < 1 << depth)
    if depth > 8:
        warnings.warn(f"{name} holds numbers up to {most}: read as {depth} bits, scaled to 8", stacklevel=2)
    return (values >> (depth - 8)).astype(np.uint8)


def _numbers(name, values, label):
    """The numbers of a mask as booleans or integers."""
    if values.dtype == bool:
        return values if values.ndim == 2 else values * np.uint8(255)
    integers = values.dtype.kind != "f"
    if not integers and not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity: a mask is True or 1 on the object and 0 elsewhere")
    least, most = values.min(), values.max()
    if label is None and (least < 0 or (most > 1 and not integers)):
        raise ValueError(
            f"{name} holds {'numbers' if integers else 'floats'} from {least:.4g} to {most:.4g}, which is not a mask: "
            "`logits > 0`, `probabilities > 0.5`, `values == label` and `(mask / 255).round()` are masks"
        )
    if integers or (label is not None and most > 1):
        return values if integers else values.round().astype(np.int64)
    if values.ndim == 2 and least == 0 and len(np.unique(values)) == 2:
        return values > 0
    return np.round(values * 255).astype(np.uint8)


def _is_part(values, found, of):
    """Whether what a mask shows are the picture's own pixels, neither white nor nearly black."""
    if values.dtype != np.uint8 or values.shape[:2] != of.shape[:2] or not found.any():
        return False
    own = (values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2))[found].astype(int)
    if np.median(own.min(axis=1)) >= 224 or np.median(own.max(axis=1)) <= 64:
        return False
    return bool((abs(own - of[found]).max(axis=1) <= 24).mean() > 0.9)


def _some(names):
    names = list(map(str, names))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
