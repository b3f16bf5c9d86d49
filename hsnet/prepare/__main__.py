"""Fetch a benchmark's files, build its masks, and check that everything is as the paper had it.

    python -m hsnet.prepare pascal                    VOC 2012 and SBD: download (3.4 GB), build the masks, check
    python -m hsnet.prepare coco                      COCO 2014: download (20 GB), build the masks, check
    python -m hsnet.prepare fss                       says where FSS-1000 is to be had and where it goes
    python -m hsnet.prepare splits                    the official lists, from the authors' repository
    python -m hsnet.prepare coco --check              only check: counts, lists, a sample of images and masks
    python -m hsnet.prepare pascal --cache 400        decode and resize every image once, for fast training

Files lie in --root, else in NAME under the folder HSNET_IMAGES, else in NAME under the data folder; the lists in
HSNET_SPLITS, else in `splits` under the data folder. Every step that is done is skipped, and a download that was cut
goes on where it ended: after any error, put right what it names and run the same command again.
"""

import argparse
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from ..benchmarks import load_benchmark
from ..benchmarks.splits import splits_folder
from ..config import images_folder, run_program
from ..runs import write_json
from .checks import CHECKS, LISTS, Finding
from .downloads import RemoteFile, fetch, require_space, unpack
from .masks import SOURCE, build_coco_masks, build_pascal_masks, take_masks

# Checksums as torchvision has them for VOC and SBD; those of COCO are the same in several independent projects, and are
# the tags under which the files are served.
VOC = RemoteFile(
    "VOCtrainval_11-May-2012.tar",
    (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://data.pjreddie.com/files/VOCtrainval_11-May-2012.tar",
    ),
    "md5:6cd6e144f989b92b3379bac3b3de84fd",
    size=1_999_639_040,
    unpacked=1_800_000_000,
)
SBD = RemoteFile(
    "benchmark.tgz",
    (
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    "md5:82b4d87ceb2ed10f6038a1cba92111cb",
    size=1_419_539_633,
    unpacked=200_000_000,
)
COCO = {
    "annotations": RemoteFile(
        "annotations_trainval2014.zip",
        ("http://images.cocodataset.org/annotations/annotations_trainval2014.zip",),
        "md5:0a379cfc70b0e71301e0f377548639bd",
        size=252_872_794,
        unpacked=900_000_000,
    ),
    "train2014": RemoteFile(
        "train2014.zip",
        ("http://images.cocodataset.org/zips/train2014.zip",),
        "md5:0da8c0bd3d6becc4dcb32757491aca88",
        size=13_510_573_713,
        unpacked=13_600_000_000,
    ),
    "val2014": RemoteFile(
        "val2014.zip",
        ("http://images.cocodataset.org/zips/val2014.zip",),
        "md5:a3d79f5ed8d289b7a7554ce06a5782b3",
        size=6_645_013_297,
        unpacked=6_700_000_000,
    ),
}
REPOSITORY = tuple(
    f"https://raw.githubusercontent.com/juhongm999/hsnet/{version}/data/splits/" for version in ("6b1bc12", "main")
)
FSS = """FSS-1000 has no stable public address; its makers share it through a link that a person must follow.
  1. Open https://github.com/HKUSTCV/FSS-1000 and follow the download link of its README (fewshot_data.zip).
  2. Unpack it, and move the folders of the 1000 classes (abacus, ab_wheel, …) into {root}, so that there are
     {root}/abacus/1.jpg … 10.jpg and 1.png … 10.png.
  3. Run `python -m hsnet.prepare fss` again: it checks what is there."""


def main() -> None:
    """The program."""
    arguments = _parser().parse_args()
    name = arguments.name
    if name not in ("pascal", "coco") and arguments.masks:
        raise ValueError(f"--masks is for pascal and coco: {name} has no masks to be built")
    root = splits_folder() if name == "splits" else images_folder(name, arguments.root)
    if not arguments.check:
        root.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(root / ".prepare.lock", timeout=0):
                STEPS[name](root, arguments)
        except Timeout:
            raise ValueError(f"another `prepare` is at work in {root}: wait for it, or end it") from None
        if arguments.cache:
            _cache(name, root, arguments.cache)
    if not report(CHECKS[name](root, sample=arguments.sample)):
        raise SystemExit(1)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m hsnet.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("pascal", "coco", "fss", "splits"), help="what to prepare")
    parser.add_argument("--root", default="", help="folder of the benchmark's files (default: see above)")
    parser.add_argument("--check", action="store_true", help="only check; fetch, build and change nothing")
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="use the authors' own PNG masks instead of building them: for coco a folder with train2014/ and val2014/, "
        "for pascal one with the PNG files. Runs record which were used; --check compares them with ours",
    )
    parser.add_argument(
        "--crowd",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="coco: paint regions marked as crowds into the masks (default: yes); recorded beside the masks",
    )
    parser.add_argument(
        "--cache", type=int, metavar="SIZE", help="also store all images at SIZE × SIZE pixels (the paper: 400)"
    )
    parser.add_argument("--sample", type=int, default=200, help="images and masks that the check opens (default: 200)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that build masks (default: one per processor)"
    )
    parser.add_argument("--keep-archives", action="store_true", help="keep downloaded archives after unpacking them")
    return parser


def report(findings: Iterable[Finding]) -> bool:
    """Print findings as they come; whether all is as it should be."""
    wrong = 0
    for finding in findings:
        print(("ok     " if not finding.remedy else "WRONG  ") + finding.text)
        if finding.remedy:
            wrong += 1
            print(f"       -> {finding.remedy}")
    print("all is as it should be" if not wrong else f"{wrong} thing{'s'[: wrong > 1]} to put right")
    return not wrong


def _cache(name, root, size):
    from ..benchmarks.cache import build_cache

    build_cache(load_benchmark(name, size=size, root=str(root)), size)


def prepare_pascal(root: Path, options: argparse.Namespace) -> None:
    """Images of VOC 2012, and one folder of masks: VOC's own, and those of SBD for the images that VOC has none of."""
    voc = {f"VOCdevkit/VOC2012/{folder}": root / folder for folder in ("JPEGImages", "SegmentationClass")}
    _fetch_and_unpack(VOC, voc, root, options)
    target = root / "SegmentationClassAug"
    if options.masks:
        _use_masks_of({target: options.masks}, target)
    elif not target.exists():
        sbd = root / "SBD" / "cls"
        _fetch_and_unpack(SBD, {"benchmark_RELEASE/dataset/cls": sbd}, root, options)
        build_pascal_masks(root / "SegmentationClass", sbd, target)
        write_json(target / SOURCE, {"source": "ours", "from": "VOC 2012 SegmentationClass, then SBD cls"})
    prepare_splits(splits_folder(), options, "pascal")


def prepare_coco(root: Path, options: argparse.Namespace) -> None:
    """Images and annotations of COCO 2014 (of another year, if they are there already), and a class mask of each image."""
    if not any((root / "annotations").glob("instances_*.json")):
        if (root / "annotations").exists():
            raise ValueError(
                f"{root / 'annotations'} holds no instances_*.json: delete it and run the same command again"
            )
        _fetch_and_unpack(COCO["annotations"], {"annotations": root / "annotations"}, root, options)
    folders = {p.stem.removeprefix("instances_"): p for p in sorted((root / "annotations").glob("instances_*.json"))}
    for folder in folders:
        if folder in COCO:
            _fetch_and_unpack(COCO[folder], {folder: root / folder}, root, options)
    masks = root / "masks"
    if options.masks:
        _use_masks_of({masks / folder: options.masks / folder for folder in folders}, masks)
    else:
        source = {"source": "ours", "crowd": options.crowd, "order": "smaller instances over larger ones"}
        _claim(masks, source)
        for folder, annotations in folders.items():
            if not (masks / folder).exists():
                build_coco_masks(annotations, masks / folder, crowd=options.crowd, workers=options.workers)
    if "train2014" in folders:
        prepare_splits(splits_folder(), options, "coco")


def prepare_fss(root: Path, options: argparse.Namespace) -> None:
    """Say what is to be fetched by hand, where it is not there.

    Raises:
        FileNotFoundError: always where the classes are missing, with what to do.
    """
    if not any(root.glob("*/1.jpg")):
        raise FileNotFoundError(FSS.format(root=root))
    prepare_splits(splits_folder(), options, "fss")


def _fetch_and_unpack(file, wanted, root, options):
    if all(target.exists() for target in wanted.values()):
        return
    require_space(root, file.unpacked, f"unpacking {file.name}")
    archive = fetch(file, root / "downloads")
    for target in wanted.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    unpack(archive, wanted)
    if not options.keep_archives:
        archive.unlink()


def _use_masks_of(folders: dict[Path, Path], masks: Path):
    theirs = {"source": "authors", "folder": next(iter(folders.values())).name}
    if masks.exists() and _source(masks).get("source") != "authors":
        raise ValueError(
            f"{masks} holds masks that were built here: rename or delete it, then run the same command again"
        )
    for target, folder in folders.items():
        if not target.exists():
            take_masks(folder, target)
    write_json(masks / SOURCE, theirs)


def _claim(masks, source):
    """Write how masks are made before the first is; refuse to mix two ways."""
    before = _source(masks)
    if before and before != source:
        raise ValueError(
            f"{masks} was made as {before}, asked for is {source}: delete {masks} to build it anew, or keep the option"
        )
    masks.mkdir(exist_ok=True)
    write_json(masks / SOURCE, source)


def _source(masks):
    return json.loads((masks / SOURCE).read_text()) if (masks / SOURCE).exists() else {}


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and whole numbers; whatever would import or call something is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, _):
        raise pickle.UnpicklingError("it asks for an object outside of the file")


def read_plain_pickle(content: bytes) -> dict | list | str | int:
    """What a pickle holds, if that is dicts, lists, strings and whole numbers only.

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
                f"this pickle holds a {type(part).__name__}: only dicts, lists, strings and whole numbers are read"
            )
    return value


def prepare_splits(folder: Path, options: argparse.Namespace | None = None, which: str = "") -> None:
    """The official lists: text files as they are, and the COCO pickles as two JSON tables of image numbers.

    Args:
        which: "pascal", "coco" or "fss"; empty for all.
    """
    for name, digest in LISTS.items():
        if name.startswith(which) and name.endswith(".txt"):
            target = folder / name
            fetch(_list_file(name, digest), target.parent)
    for split in ("trn", "val"):
        target = folder / "coco" / f"{split}.json"
        if "coco".startswith(which) and not (target.exists() or target.with_suffix(".json.gz").exists()):
            pickles = folder / "coco" / split
            parts = []
            for name, digest in LISTS.items():
                if name.startswith(f"coco/{split}/"):
                    parts.append(read_plain_pickle(fetch(_list_file(name, digest), pickles).read_bytes()))
            write_json(target, merge_coco_lists(parts))
            shutil.rmtree(pickles)


def _list_file(name: str, digest: str) -> RemoteFile:
    return RemoteFile(Path(name).name, tuple(base + name for base in REPOSITORY), f"sha256:{digest}")


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
    missing = sorted(set(range(80)) - set(table))
    if missing or len(table) > 80:
        raise ValueError(
            f"no list holds the classes {missing}, or some hold classes beyond 79: these are not the official lists"
        )
    return {str(class_id): table[class_id] for class_id in range(80)}


STEPS: dict[str, Callable] = {
    "pascal": prepare_pascal,
    "coco": prepare_coco,
    "fss": prepare_fss,
    "splits": prepare_splits,
}

if __name__ == "__main__":
    run_program(main)
