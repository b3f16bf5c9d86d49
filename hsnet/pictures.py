"""Pictures and masks as people have them: files of any kind, PIL images, arrays."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

Picture = str | Path | Image.Image | np.ndarray

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # what a folder is searched for
BEHIND = 127  # grey behind a transparent picture, nearest to what "nothing" is to a network


def read_image(picture: Picture, least: int | None = None) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """A picture as uint8 RGB, upright, with its own height and width.

    Args:
        picture: a file (turned as its EXIF says), a PIL image, or an array (h, w), (h, w, 3) or (h, w, 4): integers of
            8 or 16 bits, or floats in [0, 1]. What is transparent becomes grey.
        least: sides that are enough: a JPEG is then decoded at a half, a quarter or an eighth of its size as long as
            both its sides stay at or above this, which spares most of the time and memory of a large photograph.

    Returns:
        The image, perhaps smaller than the picture, and the picture's own (height, width).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, not a picture, a damaged one, or an array of another kind, naming it.
    """
    image, size = _open(picture, least)
    if _is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (BEHIND, BEHIND, BEHIND, 255)), image)
    return np.asarray(image.convert("RGB")), size


def read_mask(picture: Picture) -> Bool[np.ndarray, "h w"]:
    """A mask as booleans, True on the object.

    Args:
        picture: a file, a PIL image or an array. Of booleans; of two values, the lower one background (0 and 1, 0 and
            255; of two colours of a palette the darker); of greys with soft edges, cut at half of the largest; or a cut-out, whose
            transparent part is background.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what is no mask: no picture at all, a photograph, or the labels of several objects, naming them.
    """
    name, palette = describe(picture), False
    if isinstance(picture, np.ndarray):
        values = picture
        if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
            values = values.squeeze(0 if values.shape[0] == 1 else 2)
        if values.ndim == 3 and values.shape[2] == 4:
            values = values[..., 3]
        if values.ndim != 2:
            raise ValueError(
                f"{name} has shape {values.shape}: a mask is (height, width), or a cut-out of four channels"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinity: a mask is True or 1 on the object and 0 elsewhere")
    else:
        image, _ = _open(picture)
        palette = image.mode == "P"
        values = np.asarray(image.convert("RGBA"))[..., 3] if _is_transparent(image) else np.asarray(image)
        values = values.max(axis=2) if values.ndim == 3 else values
    if values.dtype == bool:
        return values
    labels, counts = np.unique(values, return_counts=True)
    if palette and len(labels) == 2:  # which index comes first means nothing
        values = np.asarray(image.convert("L"))
        labels, counts = np.unique(values, return_counts=True)
    if _are_several(labels, counts) or (palette and len(labels) > 2):
        shown = ", ".join(map(str, labels[:6])) + (", …" if len(labels) > 6 else "")
        raise ValueError(
            f"{name} holds {len(labels)} labels ({shown}): give the mask of one object, such as `labels == {labels[1]}`"
        )
    middle = (labels > 0.25 * labels[-1]) & (labels < 0.75 * labels[-1])
    if counts[middle].sum() > 0.25 * counts.sum():
        raise ValueError(
            f"{name} looks like a picture rather than a mask: a mask is white on the object, black elsewhere"
        )
    return values > labels[-1] / 2


def is_cutout(picture: Picture) -> bool:
    """Whether a picture has transparency, which can serve as its mask. Raises as `read_image` does."""
    return _is_transparent(_open(picture)[0])


def looks_like_mask(image: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether a picture is black and white only, both of them: 99 of 100 pixels within 32 of either."""
    black, white = ((near.max(axis=2) < 32).mean() for near in (image, 255 - image))
    return bool(min(black, white) > 0 and black + white > 0.99)


def looks_inverted(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether a mask more likely marks what is around the object: more than 95 % of the picture, or more than half of
    each of its four borders (a cut-out may touch all four with its object, at a few pixels)."""
    borders = mask[0], mask[-1], mask[:, 0], mask[:, -1]
    return bool(mask.mean() > 0.95 or min(border.mean() for border in borders) > 0.5)


def _are_several(labels, counts) -> bool:
    """Whether values are the labels of several objects rather than one object with soft edges."""
    if not 2 < len(labels) <= 64 or np.issubdtype(labels.dtype, np.floating):
        return False
    return bool(labels[-1] < 64 or counts[1:-1].sum() > counts[-1])


def describe(picture: Picture) -> str:
    """How an error names a picture."""
    if isinstance(picture, (str, Path)):
        return str(picture)
    return f"the {'array' if isinstance(picture, np.ndarray) else 'image'}"


def find_pictures(paths: list[str | Path]) -> list[Path]:
    """Files as they are given, folders replaced by the pictures in them, sorted by name.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without pictures.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            if not inside:
                raise FileNotFoundError(f"no pictures in {path} (looked for {', '.join(SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"no such picture or folder: {path}")
    return found


def _open(picture, least=None):
    """A decoded, upright PIL image, and the (height, width) the picture has before any draft."""
    if isinstance(picture, np.ndarray):
        image = _from_array(picture)
        return image, (image.height, image.width)
    if isinstance(picture, Image.Image):
        image = ImageOps.exif_transpose(picture)
        return _eight_bits(image), (image.height, image.width)
    if not isinstance(picture, (str, Path)):
        raise ValueError(f"a picture cannot be a {type(picture).__name__}: give a path, a PIL image or an array")
    path = Path(picture)
    if not path.exists():
        raise FileNotFoundError(f"no such picture: {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give its pictures, see `hsnet.pictures.find_pictures`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # 90 megapixels and more: meant
            with Image.open(path) as image:
                width, height = image.size
                if least:
                    image.draft(None, (least, least))
                upright = ImageOps.exif_transpose(image)
                if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # lying on its side
                    width, height = height, width
                upright.load()
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error}): make it smaller first") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # PIL raises all of these for damaged files
        raise ValueError(f"{path} is not a picture that can be read, or damaged ({error})") from error
    return _eight_bits(upright), (height, width)


def _eight_bits(image):
    """PIL cuts greys of 16 bits off at 255 when it converts them: scale them instead."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).astype(np.uint8))
    if image.mode == "F":
        return _from_array(np.asarray(image))
    return image


def _from_array(array):
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        hint = ": its channels come last here" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ValueError(f"the array has shape {array.shape}, expected (h, w), (h, w, 3) or (h, w, 4)" + hint)
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"the array holds floats from {array.min()} to {array.max()}, expected [0, 1] (or integers from 0 to 255)"
            )
        array = np.round(array * 255)
    elif array.min() < 0 or array.max() > 65535:
        raise ValueError(
            f"the array holds integers from {array.min()} to {array.max()}, expected 0 to 255 (or 16 bits)"
        )
    elif array.max() > 255:
        array = array >> 8
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def _is_transparent(image):
    return "A" in image.getbands() or "transparency" in image.info
