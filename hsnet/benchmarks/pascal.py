"""PASCAL-5i: VOC 2012 with the masks of SBD, and its classes under the folds of COCO-20i."""

from argparse import Namespace
from pathlib import Path
from typing import ClassVar

from ..prepare.downloads import RemoteFile, fetch_and_unpack, write_json
from ..prepare.masks import SOURCE, build, write_pascal_mask
from . import coco
from .base import register
from .listed import ListedBenchmark
from .splits import fetch_lists, read_pascal

NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
CLASSES = NAMES.split()
# The same classes in COCO-20i: places among COCO's 80, "airplane" 4, "bicycle" 1, and so on.
COCO_IDS = (4, 1, 14, 8, 39, 5, 2, 15, 56, 19, 60, 16, 17, 3, 0, 58, 18, 57, 6, 62)
# Checksums as torchvision has them.
VOC = RemoteFile(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "md5:6cd6e144f989b92b3379bac3b3de84fd",
)
SBD = RemoteFile(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "md5:82b4d87ceb2ed10f6038a1cba92111cb",
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
        """Images of VOC 2012, and one folder of masks: VOC's own, and those of SBD for the images that VOC has none of.

        A folder of masks that is there, such as the authors', is left as it is.
        """
        root, keep = self.root, options.keep_archives
        voc = {f"VOCdevkit/VOC2012/{folder}": root / folder for folder in ("JPEGImages", "SegmentationClass")}
        fetch_and_unpack(VOC, voc, root, keep_archive=keep)
        if not self.masks.exists():
            sbd = root / "SBD" / "cls"
            fetch_and_unpack(SBD, {"benchmark_RELEASE/dataset/cls": sbd}, root, keep_archive=keep)
            masks = {f"{path.stem}.png": path for path in sbd.glob("*.mat")}
            masks |= {path.name: path for path in (root / "SegmentationClass").glob("*.png")}  # VOC's own win
            build(masks, self.masks, write_pascal_mask)
            write_json(self.masks / SOURCE, {"source": "ours"})
        fetch_lists("pascal")


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
