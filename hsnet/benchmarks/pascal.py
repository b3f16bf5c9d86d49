"""PASCAL-5i: VOC 2012 with the masks of SBD, and its classes under the folds of COCO-20i."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ..prepare.downloads import RemoteFile, fetch_and_unpack, write_json
from ..prepare.findings import Finding, OpenedSample, anew, counted, draw, first_of, missing, stems
from ..prepare.masks import SOURCE, build_pascal_masks, makers, take_authors_masks
from . import coco
from .base import register
from .listed import ListedBenchmark
from .splits import OTHER_LISTS, fetch_lists, read_pascal, verify_lists

NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
CLASSES = NAMES.split()
# The same classes in COCO-20i: places among COCO's 80, "airplane" 4, "bicycle" 1, and so on.
COCO_IDS = (4, 1, 14, 8, 39, 5, 2, 15, 56, 19, 60, 16, 17, 3, 0, 58, 18, 57, 6, 62)
# Checksums as torchvision has them.
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


@register
class Pascal(ListedBenchmark):
    """20 classes; fold f holds out 5 f to 5 f + 4. Training images are SBD's and VOC's, test ones VOC's validation set.

    The boundaries that VOC draws around objects are background in the loss (setting `boundary`) and count in no score.
    Expected: `JPEGImages/NAME.jpg` and `SegmentationClassAug/NAME.png`, labels 1 to 20, boundary 255.
    """

    name = "pascal"
    title = "PASCAL-5i"
    vocabulary = "coco"
    class_names = CLASSES
    each_query_once = True
    has_boundary = True
    paper_settings: ClassVar = {}
    preparation = "VOC 2012 and SBD: download (3.4 GB), build the masks, verify"
    builds_masks = True
    # What is to be there. Entries of lists: as in the paper's reference implementation, by fold.
    counts: ClassVar = {
        "images": 17_125,
        "masks": 12_031,  # VOC's 2913 and SBD's 11,355, of which 2237 are of the same images
        "train": (2286, 3425, 5883, 2086),
        "val": (346, 451, 725, 346),
    }

    def fold_of(self, class_id: int) -> int:
        """Five at a time."""
        return class_id // 5

    def common_name(self, class_id: int) -> str:
        """COCO's name of the class."""
        return coco.CLASSES[COCO_IDS[class_id]]

    def listed(self, part: str) -> list[tuple[str, int]]:
        """The files of all folds, one after the other."""
        return [pair for fold in range(self.folds) for pair in read_pascal(part, fold)]

    def image_path(self, name: str) -> Path:
        """JPEGImages/NAME.jpg."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    @property
    def masks(self) -> Path:
        """Written by `prepare`, with the note of their source."""
        return self.root / "SegmentationClassAug"

    def mask_path(self, name: str) -> Path:
        """SegmentationClassAug/NAME.png."""
        return self.masks / f"{name}.png"

    def prepare(self, options: Namespace) -> None:
        """Images of VOC 2012, and one folder of masks: VOC's own, and those of SBD for the images that VOC has none of."""
        root, keep = self.root, options.keep_archives
        voc = {f"VOCdevkit/VOC2012/{folder}": root / folder for folder in ("JPEGImages", "SegmentationClass")}
        fetch_and_unpack(VOC, voc, root, keep_archive=keep)
        if options.masks:
            take_authors_masks({self.masks: options.masks}, self.masks)
        elif not self.masks.exists():
            sbd = root / "SBD" / "cls"
            fetch_and_unpack(SBD, {"benchmark_RELEASE/dataset/cls": sbd}, root, keep_archive=keep)
            build_pascal_masks(root / "SegmentationClass", sbd, self.masks)
            write_json(self.masks / SOURCE, {"source": "ours", "from": "VOC 2012 SegmentationClass, then SBD cls"})
        fetch_lists("pascal")

    def verify(self, sample: int | None) -> Iterator[Finding]:
        """See `Benchmark.verify`."""
        images = self.root / "JPEGImages"
        again = f"run `python -m hsnet.prepare pascal --root {self.root}`"
        get_images, get_masks = (anew(folder, again) for folder in (images, self.masks))
        there, masked = stems(images, ".jpg"), stems(self.masks, ".png")
        yield counted(f"images in {images}", len(there), self.counts["images"], get_images)
        yield counted(f"masks in {self.masks} ({makers(self.masks)})", len(masked), self.counts["masks"], get_masks)
        yield from verify_lists("pascal")
        pairs: list[tuple[str, int]] = []
        for split in self.parts:
            for fold, expected in enumerate(self.counts[split]):
                try:
                    entries = read_pascal(split, fold)
                except FileNotFoundError:
                    continue  # said above
                except ValueError as error:
                    yield Finding(str(error), OTHER_LISTS)
                    continue
                pairs += entries
                what = f"entries in the {split} list of fold {fold}"
                yield counted(what, len(entries), expected, OTHER_LISTS, exactly=True)
                if without := set(range(5 * fold, 5 * fold + 5)) ^ {class_id for _, class_id in entries}:
                    text = f"classes of another fold, or without images: {first_of(map(str, without))}"
                    yield Finding(f"{split} list of fold {fold}: {text}", OTHER_LISTS)
        names = {name for name, _ in pairs}
        yield from missing("listed images", names, there, get_images)
        yield from missing("masks of listed images", names, masked, get_masks)
        opened = OpenedSample(self, get_images, get_masks)
        for name, class_id in draw([p for p in pairs if p[0] in there & masked], sample):
            labels = opened.labels(name)
            if labels is not None and not (labels == self.label(class_id)).any():
                opened.wrong(name, f"lacks class {self.label(class_id)}, for which its image is listed")
        yield from opened.findings()


@register
class CocoToPascal(Pascal):
    """PASCAL's images in the folds of COCO-20i, to test a model of COCO: it has seen no class of its fold.

    A class's fold is its COCO number modulo 4: 6, 4, 6, 4 classes. The paper's own episodes are not public; these are ours:
    PASCAL's official draw from the validation lists of all folds, sorted.
    """

    name = "coco-to-pascal"
    title = "COCO to PASCAL"
    summary = "tests a run of coco"
    trained_as = "coco"
    prepared = Pascal.name
    paper_settings = None
    preparation = ""

    def fold_of(self, class_id: int) -> int:
        """As COCO-20i's."""
        return COCO_IDS[class_id] % self.folds

    def listed(self, part: str) -> list[tuple[str, int]]:
        """The lists of all folds, sorted."""
        return sorted(super().listed(part))

    def source(self) -> dict:
        """The episodes are not the authors'."""
        return super().source() | {"episodes": "ours"}
