"""Outlines of labelme and COCO as masks."""

import json

import numpy as np
import pytest
from PIL import Image

from hsnet.annotations import read_annotations
from hsnet.segmenter import read_support

SQUARE = [[10, 5], [29, 5], [29, 24], [10, 24]]
OTHER = [[40, 30], [49, 30], [49, 37], [40, 37]]
TRUTH = np.zeros((40, 60), bool)
TRUTH[5:25, 10:30] = True


def labelme(*shapes):
    shapes = [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes]
    return {"shapes": shapes, "imageHeight": 40, "imageWidth": 60, "imagePath": "a.png"}


def coco(**change):
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [np.ravel(SQUARE).tolist()]} | change
    images = [
        {"id": i, "file_name": f"images/default/{name}.png", "width": -1, "height": -1}
        for i, name in ((1, "a"), (2, "b"))
    ]
    return {"images": images, "categories": [{"id": 7, "name": "thing"}], "annotations": [annotation]}


@pytest.fixture
def write(tmp_path):
    def write(content):
        (tmp_path / "a.json").write_text(json.dumps(content))
        return tmp_path / "a.json"

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    return write


RUNS = {"size": [40, 60], "counts": [10 * 40 + 5, *([20, 20] * 20)[:-1], 60 * 40 - 29 * 40 - 25]}


@pytest.mark.parametrize("content", [labelme(("thing", SQUARE)), coco(), coco(segmentation=RUNS)])
def test_one_label_is_the_object(write, tmp_path, content):
    assert (read_support(tmp_path / "a.png", write(content)).mask == TRUTH).all()


def test_several_labels_are_listed_and_shapes_of_one_joined(write):
    path = write(labelme(("cat", SQUARE), ("dog", OTHER), ("dog", SQUARE)))
    with pytest.raises(ValueError, match=r"2 labels: cat \(17 %\), dog .*--label cat"):
        read_annotations(path, "a.png", (40, 60))
    assert (read_annotations(path, "a.png", (40, 60), "cat") == TRUTH).all()
    assert read_annotations(path, "a.png", (40, 60), "dog").sum() == TRUTH.sum() + 80
    with pytest.raises(ValueError, match="no label 'cow': it holds cat, dog"):
        read_annotations(path, "a.png", (40, 60), "cow")


@pytest.mark.parametrize(
    ("content", "message"),
    [(coco(segmentation=[]), "no outline for a.png: draw one and save it; a box is not an outline"), ({"regions": []}, "neither labelme's json nor COCO's"), (labelme(), "no outline"),
     (labelme(("x", SQUARE[:2])), "cannot be read: draw it as a polygon"), (coco(image_id=2), "no outline for a.png")],
)  # fmt: skip
def test_what_is_not_read_is_named(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_annotations(write(content), "a.png", (40, 60))
