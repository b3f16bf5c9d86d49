"""One file in COCO's format with the images it annotates."""

import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

from ..pictures import image_of, load
from ..prepare.findings import first_of
from ..prepare.masks import outline_mask, read_instances
from .base import UnreadableFileError


def instance_files(root: Path) -> list[Path]:
    """The files in COCO's format under a folder: in `annotations/`, in the folder, or one in each folder of images."""
    annotations = root / "annotations"  # COCO's own has files of captions and keypoints, too
    if found := sorted(annotations.glob("instances_*.json")) or sorted(annotations.glob("*.json")):
        return found
    found = [*sorted(root.glob("*.json")), *sorted(root.glob("*/*.json"))]
    return [path for path in found if path.name != "splits.json" and not path.parent.name.startswith("cache-")]


class Instances:
    """Images by the names that the file gives them; a class's mask is the union of its instances, crowds included.

    Images lie in the folder that the file is named after (`train2017` for `annotations/instances_train2017.json`), in
    `images/` or beside it.

    Args:
        path: the file; it names each category once.

    Raises:
        ValueError: no such file's content, boxes without outlines, or a category that is named twice.
    """

    def __init__(self, path: Path):
        self.path = path
        base = path.parent.parent if path.parent.name == "annotations" else path.parent
        self.folders = [base / path.stem.removeprefix("instances_"), base / "images", base, path.parent]
        content = read_instances(path)
        outlined = [a for a in content["annotations"] if a.get("segmentation")]
        if content["annotations"] and not outlined:
            raise ValueError(f"{path} holds boxes only: outlines (polygons or run lengths) are needed to train on")
        for image in content["images"]:
            if min(image.get("width") or 0, image.get("height") or 0) <= 0:  # some tools write -1
                image["height"], image["width"] = load(self.image_path(image["file_name"])).size
        self._images = {image["file_name"]: image for image in content["images"]}
        self._outlined = defaultdict(list)  # by the image's id
        for annotation in outlined:
            self._outlined[annotation["image_id"]].append(annotation)
        self._categories = {category["id"]: category["name"] for category in content["categories"]}
        names = list(self._categories.values())
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"{path.name} names a category twice: {first_of(twice)}: merge them, or rename one")

    def image_path(self, name: str) -> Path:
        """The file of an image, in the first folder that has it."""
        return next((f / name for f in self.folders if (f / name).exists()), self.folders[0] / name)

    def listed(self, least_area: int) -> list[tuple[str, str]]:
        """(image, category) of all images in which a category covers at least so many pixels."""
        pairs = []
        for name, image in sorted(self._images.items(), key=lambda item: item[1]["id"]):
            areas, size = defaultdict(int), (image["height"], image["width"])
            for a in self._outlined[image["id"]]:
                areas[a["category_id"]] += a["area"] if "area" in a else outline_mask(a["segmentation"], *size).sum()
            pairs += [(name, self._categories[c]) for c, area in sorted(areas.items()) if area >= least_area]
        return pairs

    def read(self, name: str, category: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """An image, uint8 RGB (h, w, 3), the union of a category's instances and of all, bool (h, w).

        Raises:
            FileNotFoundError: an image that is not there.
            UnreadableFileError: one that cannot be read, or not of the size that the annotations are for.
        """
        path, listed = self.image_path(name), self._images[name]
        size = listed["height"], listed["width"]
        try:
            stored = load(path)
            if stored.turn > 4 and stored.size != size:  # the annotations are for the pixels as they are stored
                stored = load(path, exif="ignore")
            elif stored.turn > 1 and (stored.turn <= 4 or size[0] == size[1]):
                warnings.warn(
                    f"{path} has EXIF orientation {stored.turn}, and its annotations fit with and without it: read "
                    "as drawn on the rotated image. If their tool ignores EXIF, save the image already rotated",
                    stacklevel=2,
                )
            image = image_of(stored)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is listed but missing") from error
        except ValueError as error:
            raise UnreadableFileError(str(error)) from error
        if image.shape[:2] != size:
            raise UnreadableFileError(
                f"{path} is {image.shape[1]} × {image.shape[0]} pixels, its annotations are for {size[1]} × {size[0]}: they belong to "
                "another image, or to this one before it was resized"
            )
        mask, objects = np.zeros((2, *image.shape[:2]), bool)
        for annotation in self._outlined[listed["id"]]:
            instance = outline_mask(annotation["segmentation"], *size)
            objects |= instance
            if self._categories[annotation["category_id"]] == category:
                mask |= instance
        return image, mask, objects
