"""The official split lists: which images belong to which class of which fold.

They are the authors' and are not shipped; `python -m hsnet.prepare splits` fetches them. Expected in `splits_folder()`:

    pascal/{trn,val}/fold{0..3}.txt    lines IMAGE__CLASS, class counted from 1
    fss/{trn,val,test}.txt             names of classes
    coco/{trn,val}.json (or .json.gz)  class id from 0, as text, -> numeric image ids; their order decides the episodes
"""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path

from ..paths import data_folder

PASCAL_CLASSES, COCO_CLASSES = 20, 80
_FILE_NAMES = {"train": "trn", "val": "val", "test": "test"}
_FETCH = "fetch the official lists with `python -m hsnet.prepare splits`, or set HSNET_SPLITS to their folder"


def splits_folder() -> Path:
    """Where the lists lie: `HSNET_SPLITS`, else `splits` in the data folder."""
    return Path(os.environ.get("HSNET_SPLITS") or data_folder() / "splits")


def read_pascal(split: str, fold: int) -> list[tuple[str, int]]:
    """A fold's file: (image, class id from 0) in the file's order. It lists the images of that fold's own five classes.

    Args:
        split: "train" or "val".

    Raises:
        FileNotFoundError: a list that is not there, saying how to fetch it.
        ValueError: a line that is none, or a class that does not exist.
    """
    path = splits_folder() / "pascal" / _FILE_NAMES[split] / f"fold{fold}.txt"
    pairs = []
    for number, line in enumerate(_lines(path), start=1):
        name, separator, label = line.partition("__")
        if not (name and separator and label.isdecimal()):
            raise ValueError(f"{path}, line {number}: {line!r} is not IMAGE__CLASS. {_FETCH.capitalize()}")
        if not 1 <= int(label) <= PASCAL_CLASSES:
            raise ValueError(
                f"{path}, line {number}: class {label} does not exist, they are 1 to {PASCAL_CLASSES}. "
                + _FETCH.capitalize()
            )
        pairs.append((name, int(label) - 1))
    return pairs


def read_fss(split: str) -> list[str]:
    """The class names of a split, "train", "val" or "test", in the file's order. Raises as `read_pascal` does."""
    return _lines(splits_folder() / "fss" / f"{_FILE_NAMES[split]}.txt")


def read_coco(split: str) -> dict[int, list[int]]:
    """Image ids of each of the 80 classes, "train" or "val", in the authors' order. Raises as `read_pascal` does."""
    folder = splits_folder() / "coco"
    paths = [folder / f"{_FILE_NAMES[split]}.json{suffix}" for suffix in ("", ".gz")]
    path = next((p for p in paths if p.exists()), paths[0])
    return _read_json(path, _version(path))


@lru_cache(maxsize=4)  # a megabyte of text each
def _read_json(path, version):
    try:
        table = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        lists = {int(class_id): [int(image) for image in images] for class_id, images in table.items()}
    except (ValueError, AttributeError, TypeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): {_FETCH}") from error
    wrong = sorted(set(lists) ^ set(range(COCO_CLASSES)))
    if wrong:
        unknown = [c for c in wrong if c in lists]
        what = f"lists classes that do not exist, {unknown}" if unknown else f"has no list for the classes {wrong}"
        raise ValueError(f"{path} {what}: there are 0 to {COCO_CLASSES - 1}. {_FETCH.capitalize()}")
    return lists


def _lines(path: Path) -> list[str]:
    _version(path)
    return [line for line in path.read_text().splitlines() if line.strip()]


def _version(path):
    try:
        status = path.stat()
    except OSError as error:
        raise FileNotFoundError(f"no list {path}: {_FETCH}") from error
    return status.st_mtime_ns, status.st_size
