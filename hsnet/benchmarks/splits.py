"""The official split lists, which say which images belong to which class of which fold: read, fetched and verified.

They are the authors' and are not shipped; `python -m hsnet.prepare splits` fetches them. Expected in `splits_folder()`:

    pascal/{trn,val}/fold{0..3}.txt    lines IMAGE__CLASS, class counted from 1
    fss/{trn,val,test}.txt             names of classes
    coco/{trn,val}.json (or .json.gz)  class id from 0, as text, -> numeric image ids; their order decides the episodes
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ..paths import SHIPPED, data_folder
from ..prepare.downloads import RemoteFile, fetch, write_json
from ..prepare.findings import Finding

PASCAL_CLASSES, COCO_CLASSES = 20, 80
REPOSITORY = tuple(
    f"https://raw.githubusercontent.com/juhongm999/hsnet/{version}/data/splits/" for version in ("6b1bc12", "main")
)
# The published files: name -> sha256.
LISTS: dict[str, str] = json.loads((SHIPPED / "splits-sha256.json").read_text())
# Of the COCO pickles' content, read: class id -> image numbers.
CONTENT = {
    "train": "7c586c779480fce1122c016eb55bdc3cb431d6855ce045d6622df9e56dec40ce",
    "val": "b74ea15f954a7552a515ec917ac625c84321c205d8219c49404275098b4ccc64",
}
OTHER_LISTS = "these are not the official lists: move them elsewhere and run `python -m hsnet.prepare splits`"
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
            parts = [read_plain_pickle(fetch(_remote(name), (folder / name).parent).read_bytes()) for name in pickles]
            write_json(target, merge_coco_lists(parts))
            shutil.rmtree(folder / "coco" / split)


def _names(which, suffix, start=""):
    return [name for name in LISTS if name.startswith(which) and name.startswith(start) and name.endswith(suffix)]


def _remote(name):
    return RemoteFile(Path(name).name, tuple(base + name for base in REPOSITORY), f"sha256:{LISTS[name]}")


def merge_coco_lists(parts: list[dict]) -> dict[str, list[int]]:
    """One table from the lists of four folds: class id -> image numbers, in the order of the lists.

    Raises:
        ValueError: two folds that list other images for one class, or a class that none lists.
    """
    table: dict[int, list[int]] = {}
    for part in parts:
        for class_id, names in part.items():
            numbers = [int(Path(name).stem.rpartition("_")[2]) for name in names]
            if numbers and table.setdefault(class_id, numbers) != numbers:
                raise ValueError(
                    f"the lists of two folds differ for class {class_id}: these are not the official lists"
                )
    missing = sorted(set(range(COCO_CLASSES)) - set(table))
    if missing or len(table) > COCO_CLASSES:
        raise ValueError(
            f"no list holds the classes {missing}, or some hold classes beyond 79: these are not the official lists"
        )
    return {str(class_id): table[class_id] for class_id in range(COCO_CLASSES)}


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and integers; whatever would import or call something is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, _):
        raise pickle.UnpicklingError("it asks for an object outside of the file")


def read_plain_pickle(content: bytes) -> dict | list | str | int:
    """What a pickle holds, if that is dicts, lists, strings and integers only.

    Raises:
        ValueError: a pickle that holds anything else, such as one that would run code, or a damaged one.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle raises any kind
        raise ValueError(f"this pickle holds more than lists, strings and numbers, or is damaged ({error})") from error
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if type(part) is dict:
            waiting += [*part.keys(), *part.values()]
        elif type(part) is list:
            waiting += part
        elif type(part) not in (str, int):
            raise ValueError(
                f"this pickle holds a {type(part).__name__}: only dicts, lists, strings and integers are read"
            )
    return value


def verify_lists(which: str = "") -> Iterator[Finding]:
    """Are the lists in `splits_folder()` those that were published? `which` as in `fetch_lists`."""
    folder, good = splits_folder(), 0
    again = "fetch it with `python -m hsnet.prepare splits`, or name another folder with HSNET_SPLITS"
    for name in _names(which, ".txt"):
        path = folder / name
        if not path.exists():
            yield Finding(f"{path} is missing", again)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != LISTS[name]:
            yield Finding(f"{path} is not the official list", f"move it elsewhere, then {again}")
        else:
            good += 1
    for split, digest in CONTENT.items() if "coco".startswith(which) else ():
        try:
            right = content_digest(read_coco(split)) == digest
        except (FileNotFoundError, ValueError) as error:
            yield Finding(str(error), again)
            continue
        if right:
            good += 1
        else:
            text = f"the lists of {split} in {folder / 'coco'} are not the official ones"
            yield Finding(text, f"move that folder elsewhere, then {again}")
    if good:
        yield Finding(f"{good} lists in {folder} are those that were published")


def content_digest(table: dict[int, list[int]]) -> str:
    """sha256 of a table of lists, however it is stored."""
    content = json.dumps({str(c): ids for c, ids in table.items()}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
