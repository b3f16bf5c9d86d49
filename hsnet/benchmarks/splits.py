"""The official split lists, which say which images belong to which class of which fold: read, fetched and verified.

They are the authors' and are not shipped; `python -m hsnet.prepare splits` fetches them. Expected in `splits_folder()`:

    pascal/{trn,val}/fold{0..3}.txt    lines IMAGE__CLASS, class counted from 1
    fss/{trn,val,test}.txt             names of classes
    coco/{trn,val}.json (or .json.gz)  class id from 0, as text, -> numeric image ids; their order decides the episodes
"""

import gzip
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..paths import SHIPPED, data_folder
from ..prepare.downloads import RemoteFile, fetch, write_json
from ..prepare.findings import Finding

PASCAL_CLASSES, COCO_CLASSES = 20, 80
REPOSITORY = "https://raw.githubusercontent.com/juhongm999/hsnet/6b1bc12/data/splits/"
# The published files: name -> sha256; of COCO's tables, that of their content, which is in pickles there.
LISTS: dict[str, str] = json.loads((SHIPPED / "splits-sha256.json").read_text())
OTHER_LISTS = "move it elsewhere and run `python -m hsnet.prepare splits`, or name another folder with HSNET_SPLITS"
_FILE_NAMES = {"train": "trn", "val": "val", "test": "test"}
_PARTS = {file: part for part, file in _FILE_NAMES.items()}
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
            raise ValueError(f"{path}, line {number}: {line!r} is not IMAGE__CLASS: {_FETCH}")
        if not 1 <= int(label) <= PASCAL_CLASSES:
            raise ValueError(
                f"{path}, line {number}: class {label} does not exist, they are 1 to {PASCAL_CLASSES}: {_FETCH}"
            )
        pairs.append((name, int(label) - 1))
    return pairs


def read_fss(split: str) -> list[str]:
    """The class names of a split, "train", "val" or "test", in the file's order. Raises as `read_pascal` does."""
    return _lines(splits_folder() / "fss" / f"{_FILE_NAMES[split]}.txt")


def read_coco(split: str) -> dict[int, list[int]]:
    """Image ids of each of the 80 classes, "train" or "val", in the authors' order. Raises as `read_pascal` does."""
    path = splits_folder() / "coco" / f"{_FILE_NAMES[split]}.json"
    packed = path.with_suffix(".json.gz")
    path = packed if packed.exists() and not path.exists() else path
    try:
        content = gzip.decompress(_read(path)) if path == packed else _read(path)
        lists = {int(class_id): [int(image) for image in images] for class_id, images in json.loads(content).items()}
    except (ValueError, AttributeError, TypeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): {_FETCH}") from error
    if wrong := sorted(set(lists) ^ set(range(COCO_CLASSES))):
        raise ValueError(
            f"{path} must list the classes 0 to {COCO_CLASSES - 1}, which it does not for {wrong}: {_FETCH}"
        )
    return lists


def _lines(path):
    return [line for line in _read(path).decode().splitlines() if line.strip()]


def _read(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"no list {path}: {_FETCH}") from error


def fetch_lists(which: str = "") -> None:
    """Fetch the official lists that `splits_folder()` lacks: text files as they are, the COCO pickles as two JSON tables.

    Args:
        which: "pascal", "coco" or "fss"; empty for all.

    Raises:
        ConnectionError, ValueError: lists that cannot be fetched, or are not those that were published.
    """
    folder = splits_folder()
    for name in _names(which, ".txt"):
        fetch(_remote(name), (folder / name).parent)
    for split in ("trn", "val"):
        target = folder / "coco" / f"{split}.json"
        pickles = _names(which, ".pkl", f"coco/{split}/")
        if pickles and not (target.exists() or target.with_suffix(".json.gz").exists()):
            fetched = [fetch(_remote(name), (folder / name).parent) for name in pickles]
            parts = [pickle.loads(path.read_bytes()) for path in fetched]  # safe: their checksums are right
            write_json(target, merge_coco_lists(parts))
            shutil.rmtree(folder / "coco" / split)


def _names(which, suffix, start=""):
    return [name for name in LISTS if name.startswith(which) and name.startswith(start) and name.endswith(suffix)]


def _remote(name):
    return RemoteFile(REPOSITORY + name, f"sha256:{LISTS[name]}")


def merge_coco_lists(parts: list[dict]) -> dict[str, list[int]]:
    """One table from the lists of four folds: class id, as text -> image numbers, in the order of the lists."""
    table = {c: [int(Path(name).stem[-12:]) for name in names] for part in parts for c, names in part.items() if names}
    return {str(class_id): table[class_id] for class_id in sorted(table)}


def verify_lists(which: str = "") -> Iterator[Finding]:
    """Are the lists in `splits_folder()` those that were published? `which` as in `fetch_lists`."""
    good = 0
    for name in _names(which, (".txt", ".json")):
        path = splits_folder() / name
        try:
            coco = name.endswith(".json")
            found = content_digest(read_coco(_PARTS[path.stem])) if coco else hashlib.sha256(_read(path)).hexdigest()
        except (FileNotFoundError, ValueError) as error:
            yield Finding(str(error), OTHER_LISTS)
            continue
        if found == LISTS[name]:
            good += 1
        else:
            yield Finding(f"{path} is not the official list", OTHER_LISTS)
    if good:
        yield Finding(f"{good} lists in {splits_folder()} are those that were published")


def content_digest(table: dict[int, list[int]]) -> str:
    """sha256 of a table of lists, however it is stored."""
    content = json.dumps({str(c): ids for c, ids in table.items()}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
