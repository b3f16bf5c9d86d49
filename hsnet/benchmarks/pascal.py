"""PASCAL-5i: VOC 2012 with the masks of SBD, and its classes under the folds of COCO-20i."""

from pathlib import Path

from .listed import ListedBenchmark
from .splits import read_pascal

NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
CLASSES = NAMES.split()
# The same classes in COCO-20i: places among COCO's 80, "airplane" 4, "bicycle" 1, and so on.
COCO_IDS = (4, 1, 14, 8, 39, 5, 2, 15, 56, 19, 60, 16, 17, 3, 0, 58, 18, 57, 6, 62)


class Pascal(ListedBenchmark):
    """20 classes; fold f holds out 5 f to 5 f + 4. Training images are SBD's and VOC's, test ones VOC's validation set.

    The boundaries that VOC draws around objects are background in the loss (setting `boundary`) and count in no score.
    Expected: `JPEGImages/NAME.jpg` and `SegmentationClassAug/NAME.png`, labels 1 to 20, boundary 255.
    """

    name = "pascal"
    class_names = CLASSES
    each_query_once = True
    has_boundary = True

    def fold_of(self, class_id: int) -> int:
        """Five at a time."""
        return class_id // 5

    def listed(self, part: str) -> list[tuple[str, int]]:
        """The files of all folds, one after the other."""
        return [pair for fold in range(self.folds) for pair in read_pascal(part, fold)]

    def image_path(self, name: str) -> Path:
        """JPEGImages/NAME.jpg."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    @property
    def source_path(self) -> Path:
        """Written by `hsnet.prepare`."""
        return self.root / "SegmentationClassAug" / "source.json"

    def mask_path(self, name: str) -> Path:
        """SegmentationClassAug/NAME.png."""
        return self.root / "SegmentationClassAug" / f"{name}.png"


class CocoToPascal(Pascal):
    """PASCAL's images in the folds of COCO-20i, to test a model of COCO: it has seen no class of its fold.

    A class's fold is its COCO number modulo 4: 6, 4, 6, 4 classes. The paper's own episodes are not public; these are ours:
    PASCAL's official draw from the validation lists of all folds, sorted.
    """

    name = "coco-to-pascal"
    prepared = Pascal.name

    def fold_of(self, class_id: int) -> int:
        """As COCO-20i's."""
        return COCO_IDS[class_id] % self.folds

    def listed(self, part: str) -> list[tuple[str, int]]:
        """The lists of all folds, sorted."""
        return sorted(super().listed(part))

    def source(self) -> dict:
        """The episodes are not the authors'."""
        return super().source() | {"episodes": "ours"}
