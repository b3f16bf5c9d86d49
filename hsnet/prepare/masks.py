"""Class masks of photographs, one picture of labels per image, built from what the data sets publish."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from pycocotools import mask as coco_masks
from tqdm import tqdm

from .downloads import write_json

SOURCE = "source.json"  # beside the masks: who made them and how

Instance = tuple[int, float | int, dict | list]  # label from 1, area in pixels, outline as COCO stores it
Task = tuple[Path, int, int, list[Instance]]  # where to, height, width


def voc_palette() -> list[int]:
    """The 256 colours in which PASCAL VOC stores labels: the bits of a label, spread over red, green and blue."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((labels >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.flatten().tolist()


def build_pascal_masks(voc: Path, sbd: Path, target: Path) -> int:
    """One folder of masks from VOC's own and those of the Semantic Boundaries Dataset; VOC's own wins.

    Args:
        voc: PNG files of labels 0 to 20 and 255, copied as they are.
        sbd: .mat files, whose `GTcls.Segmentation` holds labels 0 to 20.
        target: appears when all are there.

    Returns:
        How many masks there are.

    Raises:
        ValueError: a file that is no mask, naming it.
    """
    from scipy.io import loadmat

    own = {path.name: path for path in voc.glob("*.png")}
    theirs = {f"{path.stem}.png": path for path in sbd.glob("*.mat")}
    palette = voc_palette()

    def write(path, made):
        if path.suffix == ".png":
            shutil.copyfile(path, made)
            return
        try:
            labels = loadmat(path)["GTcls"][0, 0]["Segmentation"]
            image = Image.fromarray(np.asarray(labels, np.uint8), "P")
        except Exception as error:  # scipy raises many kinds for a damaged file
            raise ValueError(
                f"{path} is damaged ({error}): move {sbd} elsewhere and run the same command again, it unpacks it anew"
            ) from error
        image.putpalette(palette)
        image.save(made, "PNG")

    return _write_all(theirs | own, target, write, "building masks")


def _write_all(sources: dict[str, Path], target: Path, write: Callable[[Path, Path], object], title: str) -> int:
    """Make a file of each source; `target` appears when all are there, what an interrupted call made is kept."""
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    for name, source in tqdm(sorted(sources.items()), title, unit="mask"):
        if not (part / name).exists():
            temporary = (part / name).with_suffix(".tmp")
            write(source, temporary)
            temporary.replace(part / name)
    part.replace(target)
    return len(sources)


def paint(height: int, width: int, instances: Iterable[Instance]) -> UInt8[np.ndarray, "h w"]:
    """Labels of one image, smaller instances over larger ones; 0 where there is none."""
    labels = np.zeros((height, width), np.uint8)
    for label, _, outline in sorted(instances, key=lambda instance: -instance[1]):
        labels[outline_mask(outline, height, width)] = label
    return labels


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
            f"{annotations} is no complete instances file ({error}): export it again, or, of COCO's own, move it elsewhere and "
            "run `python -m hsnet.prepare coco`"
        ) from error


def image_instances(instances: dict, crowd: bool) -> dict[int, list[Instance]]:
    """Per image id: label (place of the category in the order of ids, from 1), area and outline of its instances."""
    label = {c: k for k, c in enumerate(sorted(c["id"] for c in instances["categories"]), 1)}
    found: dict[int, list] = {image["id"]: [] for image in instances["images"]}
    for a in instances["annotations"]:
        if (crowd or not a.get("iscrowd")) and a.get("segmentation"):
            found[a["image_id"]].append((label[a["category_id"]], a["area"], a["segmentation"]))
    return found


def build_coco_masks(annotations: Path, target: Path, *, crowd: bool = True, workers: int = 0) -> int:
    """A grey PNG per image of an instances file: 0 for background, k for the k-th category in the order of ids.

    Smaller instances lie over larger ones. What an interrupted call has made is used by the next.

    Args:
        target: folder; appears when all masks are there.
        crowd: paint regions marked as crowds too.
        workers: processes (0: one per processor).

    Returns:
        How many masks there are.
    """
    instances = read_instances(annotations)
    found = image_instances(instances, crowd)
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    tasks: list[Task] = []
    for image in instances["images"]:
        made = part / f"{Path(image['file_name']).stem}.png"
        if not made.exists():
            tasks.append((made, image["height"], image["width"], found[image["id"]]))
    bar = {"desc": f"masks of {target.name}", "total": len(tasks), "unit": "mask"}
    workers = min(workers or os.cpu_count() or 1, 1 + len(tasks) // 256)
    if workers == 1:
        for task in tqdm(tasks, **bar):
            _write_coco_mask(task)
    else:
        with multiprocessing.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            for _ in tqdm(pool.imap_unordered(_write_coco_mask, tasks, chunksize=64), **bar):
                pass
    part.replace(target)
    return len(instances["images"])


def _write_coco_mask(task: Task) -> None:
    made, height, width, instances = task
    temporary = made.with_suffix(".tmp")
    Image.fromarray(paint(height, width, instances)).save(temporary, "PNG")
    temporary.replace(made)


def take_masks(folder: Path, target: Path) -> int:
    """Copy somebody else's PNG masks; `target` appears when all are there.

    Raises:
        FileNotFoundError: a folder without PNG files.
    """
    files = sorted(folder.glob("*.png"))
    if not files:
        raise FileNotFoundError(f"no PNG files in {folder}: give the folder of the authors' masks with --masks")
    return _write_all({path.name: path for path in files}, target, shutil.copyfile, f"copying {target.name}")


def take_authors_masks(folders: dict[Path, Path], masks: Path) -> None:
    """Copy the authors' masks and note whose they are.

    Args:
        folders: where to -> where from.
        masks: the folder of the note.

    Raises:
        ValueError: masks of our own that are there already.
    """
    if masks.exists() and read_source(masks).get("source") != "authors":
        raise ValueError(f"{masks} holds masks that were built here: rename it, then run the same command again")
    for target, folder in folders.items():
        if not target.exists():
            take_masks(folder, target)
    write_json(masks / SOURCE, {"source": "authors", "folder": next(iter(folders.values())).name})


def begin_masks(masks: Path, source: dict) -> None:
    """Note how masks are made before the first is.

    Raises:
        ValueError: masks that were made in another way, both named.
    """
    before = read_source(masks)
    if before and before != source:
        raise ValueError(
            f"{masks} was made as {before}, asked for is {source}: rename {masks} to build it anew, or keep the option"
        )
    masks.mkdir(exist_ok=True)
    write_json(masks / SOURCE, source)


def read_source(masks: Path) -> dict:
    """Who made the masks in a folder, and how: {} where nothing says it."""
    return json.loads((masks / SOURCE).read_text()) if (masks / SOURCE).exists() else {}


def makers(masks: Path) -> str:
    """The same in words."""
    source = read_source(masks)
    crowd = {True: ", with crowds", False: ", without crowds"}.get(source.get("crowd"), "")
    return {"ours": "built here", "authors": "the authors'"}.get(source.get("source"), "of unknown origin") + crowd


def agreement(ours: UInt8[np.ndarray, "h w"], theirs: UInt8[np.ndarray, "h w"]) -> Int[np.ndarray, " 4"]:
    """Equal pixels, all pixels; the same two numbers among pixels that either calls an object: to be summed over images."""
    equal, objects = ours == theirs, (ours > 0) | (theirs > 0)
    return np.array([equal.sum(), equal.size, (equal & objects).sum(), objects.sum()])
