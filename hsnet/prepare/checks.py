"""Is a benchmark's folder as the paper had it? Counts, official lists, a sample of images and masks; each flaw with its remedy."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from ..benchmarks import UnreadableFileError, splits
from ..benchmarks.coco import Coco
from ..benchmarks.fss import Fss
from ..benchmarks.listed import ListedBenchmark
from ..benchmarks.pascal import Pascal
from ..paths import SHIPPED
from .masks import SOURCE, agreement, image_instances, paint, read_instances

# The official lists: name -> sha256, as published.
LISTS: dict[str, str] = json.loads((SHIPPED / "splits-sha256.json").read_text())
# Of the COCO pickles' content, read: class id -> image numbers.
CONTENT = {
    "train": "7c586c779480fce1122c016eb55bdc3cb431d6855ce045d6622df9e56dec40ce",
    "val": "b74ea15f954a7552a515ec917ac625c84321c205d8219c49404275098b4ccc64",
}
# What is to be there. Entries of lists: as in the paper's reference implementation, by fold.
COUNTS = {
    "pascal images": 17_125,
    "pascal masks": 12_031,  # VOC's 2913 and SBD's 11,355, of which 2237 are of the same images
    "pascal train": (2286, 3425, 5883, 2086),
    "pascal val": (346, 451, 725, 346),
    "coco train2014": 82_783,
    "coco val2014": 40_504,
    "coco categories": 80,
    "coco train": (62_040, 74_381, 73_035, 73_808),  # images of the classes that a fold trains on
    "coco val": (26_052, 15_305, 13_138, 12_640),
    "fss train": 520,
    "fss val": 240,
    "fss test": 240,
    "fss images": 10,
}
_OTHER_LISTS = "these are not the official lists: delete them and run `python -m hsnet.prepare splits`"
COVERED = 0.02  # share of COCO masks in which a smaller instance may hide the listed class altogether


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        text: what was found.
        remedy: what to do about it; empty where it is as it should be.
    """

    text: str
    remedy: str = ""


def content_digest(table: dict) -> str:
    """sha256 of a table of lists, however it is stored."""
    return hashlib.sha256(json.dumps(table, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_splits(folder: Path, which: str = "", sample: int = 0) -> Iterator[Finding]:
    """Are the lists those that were published?

    Args:
        which: "pascal", "coco" or "fss"; empty for all.
    """
    again = "fetch it with `python -m hsnet.prepare splits`, or name another folder with HSNET_SPLITS"
    good = []
    for name, digest in LISTS.items():
        path = folder / name
        if not name.startswith(which) or not name.endswith(".txt"):
            continue
        if not path.exists():
            yield Finding(f"{path} is missing", again)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield Finding(f"{path} is not the official list", f"delete it, then {again}")
        else:
            good.append(name)
    for split, digest in CONTENT.items():
        if not "coco".startswith(which):
            continue
        try:
            table = {str(c): ids for c, ids in splits.read_coco(split).items()}
        except (FileNotFoundError, ValueError) as error:
            yield Finding(str(error), again)
            continue
        if content_digest(table) == digest:
            good.append(f"coco, {split}")
        else:
            text = f"the lists of {split} in {folder / 'coco'} are not the official ones"
            yield Finding(text, f"delete that folder, then {again}")
    if good:
        yield Finding(f"{len(good)} lists in {folder} are those that were published")


def _count(what: str, found: int, expected: int, remedy: str) -> Finding:
    if found < expected:
        return Finding(f"{found:,} {what}, {expected:,} expected", remedy)
    return Finding(f"{found:,} {what}" + (f" ({expected:,} expected; more do no harm)" if found > expected else ""))


def _anew(folder: Path, again: str) -> str:
    return f"delete {folder}, and {again}" if folder.exists() else again


def _listed(what: str, found: int, expected: int) -> Finding:
    text = f"{found:,} {what}"
    return Finding(text) if found == expected else Finding(f"{text}, {expected:,} expected", _OTHER_LISTS)


def _named(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _missing(what: str, names: set[str], there: set[str], remedy: str) -> Iterator[Finding]:
    """Nothing where no name is known: that the lists are missing has then been said."""
    missing = names - there
    if missing:
        yield Finding(f"{len(missing):,} of {len(names):,} {what} are missing: {_named(missing)}", remedy)
    elif names:
        yield Finding(f"all {len(names):,} {what} are there")


def _files(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*{suffix}")} if folder.is_dir() else set()


class _Sample:
    """Opens images with their masks as training does, and gathers what is wrong with them."""

    def __init__(self, benchmark: ListedBenchmark, remedy_image: str, remedy_mask: str):
        self.benchmark, self.opened = benchmark, 0
        self.remedy_image, self.remedy_mask = remedy_image, remedy_mask
        self.flaws: dict[str, list[str]] = {remedy_image: [], remedy_mask: []}

    def labels(self, name: str) -> UInt8[np.ndarray, "h w"] | None:
        """An image's map of labels, if both can be read and fit."""
        self.opened += 1
        try:
            return self.benchmark.picture(name)[1]
        except (FileNotFoundError, UnreadableFileError) as error:
            of_mask = str(error).startswith(str(self.benchmark.mask_path(name)))
            self.flaws[self.remedy_mask if of_mask else self.remedy_image].append(str(error))
            return None

    def wrong(self, name: str, text: str) -> None:
        """Note a flaw of a mask."""
        self.flaws[self.remedy_mask].append(f"{self.benchmark.mask_path(name)} {text}")

    def findings(self) -> Iterator[Finding]:
        for remedy, flaws in self.flaws.items():
            if flaws:
                more = f" (and {len(flaws) - 3} more)" if len(flaws) > 3 else ""
                yield Finding("; ".join(flaws[:3]) + more, remedy)
        if self.opened and not any(self.flaws.values()):
            yield Finding(f"{self.opened} listed pairs of an image and a class opened: sizes and labels are right")


def check_pascal(root: Path, sample: int = 200) -> Iterator[Finding]:
    """PASCAL-5i in `root`."""
    images, masks = root / "JPEGImages", root / "SegmentationClassAug"
    again = f"run `python -m hsnet.prepare pascal --root {root}`"
    get_images, get_masks = (_anew(folder, again) for folder in (images, masks))
    there, masked = _files(images, ".jpg"), _files(masks, ".png")
    yield _count(f"images in {images}", len(there), COUNTS["pascal images"], get_images)
    yield _count(f"masks in {masks} ({_made_by(masks)})", len(masked), COUNTS["pascal masks"], get_masks)
    yield from check_splits(splits.splits_folder(), "pascal")
    pairs: list[tuple[str, int]] = []
    for split in ("train", "val"):
        for fold, expected in enumerate(COUNTS[f"pascal {split}"]):
            try:
                entries = splits.read_pascal(split, fold)
            except FileNotFoundError:
                continue  # said above
            except ValueError as error:
                yield Finding(str(error), _OTHER_LISTS)
                continue
            pairs += entries
            text = f"{len(entries):,} entries in the {split} list of fold {fold}"
            without = set(range(5 * fold, 5 * fold + 5)) ^ {class_id for _, class_id in entries}
            if len(entries) != expected or without:
                also = f"; classes of another fold, or without images: {_named(map(str, without))}" if without else ""
                yield Finding(f"{text}, {expected:,} expected{also}", _OTHER_LISTS)
            else:
                yield Finding(text)
    names = {name for name, _ in pairs}
    yield from _missing("listed images", names, there, get_images)
    yield from _missing("masks of listed images", names, masked, get_masks)
    opened = _Sample(Pascal(root), get_images, get_masks)
    for name, class_id in _draw([p for p in pairs if p[0] in there & masked], sample):
        labels = opened.labels(name)
        if labels is not None and not (labels == class_id + 1).any():
            opened.wrong(name, f"lacks class {class_id + 1}, for which its image is listed")
    yield from opened.findings()


def check_coco(root: Path, sample: int = 200) -> Iterator[Finding]:
    """COCO-20i in `root`, or COCO of another year, for which there are no official lists."""
    again = f"run `python -m hsnet.prepare coco --root {root}`"
    files = {p.stem.removeprefix("instances_"): p for p in sorted((root / "annotations").glob("instances_*.json"))}
    if not files:
        yield Finding(f"no {root / 'annotations'}/instances_*.json", again)
        return
    official = {"train2014", "val2014"} <= set(files)
    lists = {}
    if official:
        yield from check_splits(splits.splits_folder(), "coco")
        for split, year in (("train", "train2014"), ("val", "val2014")):
            try:
                lists[year] = table = splits.read_coco(split)
            except (FileNotFoundError, ValueError):
                continue  # said above
            for fold, expected in enumerate(COUNTS[f"coco {split}"]):
                found = {i for c, ids in table.items() if (c % 4 == fold) == (split == "val") for i in ids}
                yield _listed(f"images in the {split} lists of fold {fold}", len(found), expected)
    else:
        yield Finding(f"{', '.join(files)}: not COCO 2014, so without the official lists; scores are not COCO-20i's")
    source = _read_source(root / "masks")
    for year, path in files.items():
        yield from _check_coco_folder(root, year, path, lists.get(year), source, sample, again)


def _check_coco_folder(root, year, path, table, source, sample, again):
    images, masks = root / year, root / "masks" / year
    get_images, get_masks = (_anew(folder, again) for folder in (images, masks))
    try:
        instances = read_instances(path)
    except ValueError as error:
        yield Finding(str(error), f"delete {path.parent}, and {again}")
        return
    stems = {image["id"]: Path(image["file_name"]).stem for image in instances["images"]}
    names = {image["id"]: image["file_name"] for image in instances["images"]}
    expected = COUNTS.get(f"coco {year}", len(stems))
    yield _count(f"images in {path.name}", len(stems), expected, f"delete {path.parent}, and {again}")
    if len(instances["categories"]) != COUNTS["coco categories"]:
        yield Finding(
            f"{len(instances['categories'])} categories in {path.name}, {COUNTS['coco categories']} expected",
            f"delete {path.parent}, and {again}",
        )
    there, masked = _files(images, ".jpg"), _files(masks, ".png")
    yield from _missing(f"images of {year}", set(stems.values()), there, get_images)
    yield from _missing(f"masks of {year} ({_made_by(root / 'masks')})", set(stems.values()), masked, get_masks)
    found = image_instances(instances, source.get("crowd", True))
    if table is None:
        pairs = [(i, label - 1) for i, parts in found.items() for label in {part[0] for part in parts}]
    else:
        pairs = [(i, c) for c, ids in table.items() for i in ids]
        unknown = {str(i) for i, _ in pairs if i not in stems}
        if unknown:
            yield Finding(
                f"listed images that {path.name} does not know: {_named(unknown)}", f"delete {path.parent}, and {again}"
            )
    drawn = _draw([(i, c) for i, c in pairs if stems.get(i) in there & masked], sample)
    opened, hidden, sums = _Sample(Coco(root), get_images, get_masks), 0, np.zeros((2, 4), int)
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    without = image_instances(instances, crowd=False) if source.get("source") == "authors" else {}
    for image_id, class_id in drawn:
        labels = opened.labels(f"{year}/{names[image_id]}")
        if labels is None:
            continue
        hidden += not (labels == class_id + 1).any()
        if source.get("source") == "authors":
            for k, parts in enumerate((found[image_id], without[image_id])):
                sums[k] += agreement(paint(*sizes[image_id], parts), labels)
    yield from opened.findings()
    if opened.opened:
        text = f"in {hidden} of {opened.opened} sampled masks of {year} the listed class does not show"
        yield Finding(text, get_masks) if hidden > COVERED * opened.opened else Finding(text)
    for (equal, pixels, equal_objects, objects), crowd in zip(sums, ("with", "without"), strict=True):
        if pixels:
            yield Finding(
                f"the authors' masks of {year} and ours, {crowd} crowds, agree in {100 * equal / pixels:.2f} % of the pixels, "
                f"and in {100 * equal_objects / max(objects, 1):.2f} % of those that either calls an object ({opened.opened} masks)"
            )


def check_fss(root: Path, sample: int = 200) -> Iterator[Finding]:
    """FSS-1000 in `root`."""
    yield from check_splits(splits.splits_folder(), "fss")
    classes, by_hand = (
        [],
        f"unpack FSS-1000 so that {root}/abacus/1.jpg is there; `python -m hsnet.prepare fss` says how",
    )
    for split in ("train", "val", "test"):
        try:
            listed = splits.read_fss(split)
        except FileNotFoundError:
            continue  # said above
        yield _listed(f"classes in the {split} list", len(listed), COUNTS[f"fss {split}"])
        classes += listed
    there = {path.name for path in root.glob("*/")} if root.is_dir() else set()
    nested = next((p.parent.parent for p in root.glob("*/*/1.jpg")), None) or next(
        (p.parent.parent for p in root.glob("*/*/*/1.jpg")), None
    )
    if nested:
        by_hand = f"the classes lie too deep: move the folders in {nested} into {root}"
    yield from _missing("listed classes", set(classes), there, by_hand)
    numbers = range(1, COUNTS["fss images"] + 1)
    lacking = {
        f"{name}/{k}{suffix}"
        for name in set(classes) & there
        for k in numbers
        for suffix in (".jpg", ".png")
        if not (root / name / f"{k}{suffix}").exists()
    }
    if lacking:
        yield Finding(f"{len(lacking):,} files are missing: {_named(lacking)}", by_hand)
    elif set(classes) & there:
        yield Finding(f"{COUNTS['fss images']} images and masks in each of {len(set(classes) & there):,} classes")
    opened = _Sample(Fss(root), by_hand, by_hand)
    pairs = [f"{name}/{k}" for name in sorted(set(classes) & there) for k in numbers]
    for name in _draw([p for p in pairs if not {f"{p}.jpg", f"{p}.png"} & lacking], sample):
        labels = opened.labels(f"{name}.jpg")
        if labels is not None and not labels.any():
            opened.wrong(f"{name}.jpg", "marks nothing")
    yield from opened.findings()


def _draw(pairs: list, count: int) -> Iterator:
    drawn = random.Random(0).sample(pairs, min(count, len(pairs)))
    yield from tqdm(drawn, "opening a sample", unit="image", leave=False, disable=len(drawn) < 20)


def _read_source(masks: Path) -> dict:
    return json.loads((masks / SOURCE).read_text()) if (masks / SOURCE).exists() else {}


def _made_by(masks: Path) -> str:
    source = _read_source(masks)
    crowd = {True: ", with crowds", False: ", without crowds"}.get(source.get("crowd"), "")
    return {"ours": "built here", "authors": "the authors'"}.get(source.get("source"), "of unknown origin") + crowd


CHECKS: dict[str, Callable[..., Iterator[Finding]]] = {
    "pascal": check_pascal,
    "coco": check_coco,
    "fss": check_fss,
    "splits": check_splits,
}
