"""Outlines written by annotation tools: labelme's json, and COCO's, which CVAT, Label Studio, Roboflow and others export."""

import base64
import io
import json
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from .prepare.masks import outline_mask

TOOLS = "export it as COCO json or as PNG masks"


def read_annotations(
    path: Path, picture: str, size: tuple[int, int], label: str | None = None
) -> Bool[np.ndarray, "h w"]:
    """The mask of one label: the union of its shapes.

    Args:
        path: a file of labelme, of one picture; or of COCO, of any number of pictures.
        picture: the name of the picture's file, which COCO's `file_name` ends in; empty for one without a file.
        size: the picture's height and width, for files that say none.
        label: the name of what is meant; None where there is one only.

    Returns:
        The mask, in the size that the file says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, another picture's, without outlines, or of several labels, with their names.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no such annotations: {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, or damaged ({error})") from error
    try:
        if isinstance(content, dict) and "shapes" in content:
            found, size = _labelme(path, content, size)
        elif isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content):
            found, size = _coco(path, content, picture, size)
        else:
            raise ValueError(f"{path} is neither labelme's json nor COCO's: {TOOLS}")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): {TOOLS}") from error
    if not found:
        raise ValueError(
            f"{path} has no outline for {picture or 'this image'}: draw one and save it; a box is not an outline"
        )
    if label is None and len(found) > 1:
        shares = ", ".join(f"{name} ({100 * mask.mean():.2g} %)" for name, mask in found.items())
        raise ValueError(
            f"{path} holds {len(found)} labels: {shares}. Pick the object with --label {next(iter(found))}"
        )
    if label is not None and str(label) not in found:
        raise ValueError(f"{path} has no label {str(label)!r}: it holds {', '.join(found)}")
    return found[str(label)] if label is not None else next(iter(found.values()))


def _polygon(points, height, width):
    """What an outline encloses and passes through, as labelme paints it."""
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).polygon([tuple(p) for p in np.round(points).astype(int).tolist()], fill=1)
    return np.asarray(image)


def _outline(outline, height, width):
    """Polygons, painted as labelme does, or run lengths."""
    if isinstance(outline, list):
        return np.any([_polygon(np.reshape(part, (-1, 2)), height, width) for part in outline], axis=0)
    return outline_mask(outline, height, width)


def _labelme(path, content, size):
    height, width = content.get("imageHeight") or size[0], content.get("imageWidth") or size[1]
    found: dict[str, np.ndarray] = {}
    for shape in content["shapes"]:
        kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float)
        mask = np.zeros((height, width), bool)
        if kind == "mask":
            (left, top), _ = np.round(points).astype(int)
            part = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
            inside = mask[top : top + part.shape[0], left : left + part.shape[1]]
            inside |= part[: inside.shape[0], : inside.shape[1]]
        else:
            if kind == "rectangle" and len(points) == 2:
                (x, y), (x2, y2) = points
                points = np.array([[x, y], [x2, y], [x2, y2], [x, y2]])
            elif kind not in ("polygon", "rectangle", "rotation") or len(points) < 3:
                raise ValueError(
                    f"{path}: the {kind} {shape['label']!r} cannot be read: draw it as a polygon, or delete it"
                )
            mask = _polygon(points, height, width)
        found[str(shape["label"])] = found.get(str(shape["label"]), False) | mask
    return found, (height, width)


def _coco(path, content, picture, size):
    images = content["images"]
    own = [i for i in images if _last(i["file_name"]) == _last(picture)]
    own = own or (images if len(images) == 1 and not picture else [])
    if len(own) != 1:
        some = ", ".join(_last(i["file_name"]) for i in images[:3]) + (", …" if len(images) > 3 else "")
        raise ValueError(
            f"{path} lists {len(own) or 'no'} images named {picture or '(no name)'}; it lists {len(images)}: {some}"
        )
    [image] = own
    height, width = (image.get(k) or 0 for k in ("height", "width"))
    height, width = (height, width) if min(height, width) > 0 else size
    names = {c["id"]: str(c["name"]) for c in content["categories"]}
    found: dict[str, np.ndarray] = {}
    for annotation in content["annotations"]:
        if annotation["image_id"] != image["id"] or not annotation.get("segmentation"):
            continue
        name = names.get(annotation["category_id"], str(annotation["category_id"]))
        found[name] = found.get(name, False) | _outline(annotation["segmentation"], height, width)
    return found, (height, width)


def _last(name):
    """The file's name without folders, of whichever system."""
    return PurePosixPath(PureWindowsPath(name).as_posix()).name
