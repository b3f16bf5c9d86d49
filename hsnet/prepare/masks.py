"""Class masks of photographs, one picture of labels per image, built from what the data sets publish."""

import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from pycocotools import mask as coco_masks
from tqdm import tqdm

SOURCE = "source.json"  # beside the masks: who made them and how

Instance = tuple[int, float | int, dict | list]  # label from 1, area in pixels, outline as COCO stores it


def build(sources: dict[str, object], target: Path, write: Callable[[object, Path], object]) -> None:
    """Make a file of each source; `target` appears when all are there, what an interrupted call has made is kept.

    Args:
        sources: by the name of their file.
        write: makes a file of a source.
    """
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    tasks = [(write, source, part / name) for name, source in sources.items() if not (part / name).exists()]
    with multiprocessing.Pool(None, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        built = pool.imap_unordered(_build_one, tasks, chunksize=64)
        list(tqdm(built, f"masks of {target.name}", len(tasks), unit="mask"))
    part.replace(target)


def _build_one(task):
    write, source, path = task
    temporary = path.with_suffix(".tmp")
    write(source, temporary)
    temporary.replace(path)


def write_pascal_mask(source: Path, path: Path) -> None:
    """A mask of VOC, a PNG of labels 0 to 20 and 255, or of SBD, a .mat whose `GTcls.Segmentation` holds labels 0 to 20."""
    from scipy.io import loadmat

    if source.suffix == ".png":
        shutil.copyfile(source, path)
    else:
        labels = loadmat(source)["GTcls"][0, 0]["Segmentation"]
        Image.fromarray(np.asarray(labels, np.uint8)).save(path, "PNG")


def write_coco_mask(source: tuple[int, int, list[Instance]], path: Path) -> None:
    """A grey PNG of labels, 0 where there is none; `source` holds height, width and instances, of which smaller ones lie on top."""
    height, width, instances = source
    labels = np.zeros((height, width), np.uint8)
    for label, _, outline in sorted(instances, key=lambda instance: -instance[1]):
        labels[outline_mask(outline, height, width)] = label
    Image.fromarray(labels).save(path, "PNG")


def outline_mask(outline: dict | list, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """What lies inside an outline of COCO: polygons, or run lengths, compressed or not."""
    if isinstance(outline, dict) and isinstance(outline["counts"], bytes | str):
        return coco_masks.decode(outline).astype(bool)
    parts = coco_masks.frPyObjects(outline, height, width)
    return coco_masks.decode(coco_masks.merge(parts) if isinstance(parts, list) else parts).astype(bool)


def read_instances(annotations: Path) -> dict:
    """An instances file of COCO.

    Raises:
        FileNotFoundError, ValueError: none there, or half of one, saying what to do.
    """
    if not annotations.exists():
        raise FileNotFoundError(f"no {annotations}: fetch it with `python -m hsnet.prepare coco`")
    try:
        content = json.loads(annotations.read_text())
        return {key: content[key] for key in ("images", "annotations", "categories")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{annotations} is not a complete instances file ({error}): export it again, or, if it is COCO's own, move it away and "
            "run `python -m hsnet.prepare coco`"
        ) from error


def coco_mask_sources(annotations: Path) -> dict[str, tuple[int, int, list[Instance]]]:
    """What `write_coco_mask` takes of each image of an instances file, by the name of its mask.

    A label is the place of the category in the order of ids, from 1. Regions marked as crowds are instances too.
    """
    content = read_instances(annotations)
    label = {c: k for k, c in enumerate(sorted(c["id"] for c in content["categories"]), 1)}
    found: dict[int, list[Instance]] = {image["id"]: [] for image in content["images"]}
    for a in content["annotations"]:
        if a.get("segmentation"):
            found[a["image_id"]].append((label[a["category_id"]], a["area"], a["segmentation"]))
    return {
        f"{Path(image['file_name']).stem}.png": (image["height"], image["width"], found[image["id"]])
        for image in content["images"]
    }


def read_source(masks: Path) -> dict:
    """Who made the masks in a folder, and how: {} where they were put there by hand."""
    return json.loads((masks / SOURCE).read_text()) if (masks / SOURCE).exists() else {}
