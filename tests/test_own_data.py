"""Files in COCO's format as people have them: crowds, turned images."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from hsnet.benchmarks import load_benchmark
from hsnet.episodes import test_episodes
from hsnet.pictures import read_image


def annotate(root, names, turn=1):
    """A COCO data set of four pictures a class; `names` are those of training and validation, by category number."""
    (root / "annotations").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = turn
    for part, categories in zip(("train", "val"), names, strict=True):
        (root / f"{part}2024").mkdir()
        images, annotations = [], []
        for number in (number for number in categories for _ in range(4)):
            k = len(images) + 1
            pixels = np.zeros((60, 80, 3), np.uint8)
            pixels[10:50, 5:45] = 200  # what the annotations mark, of the picture as it is seen
            stored = np.rot90(pixels) if turn == 6 else pixels  # a viewer turns it back, clockwise
            Image.fromarray(np.ascontiguousarray(stored)).save(root / f"{part}2024/{k}.jpg", exif=exif, quality=95)
            images.append({"id": k, "file_name": f"{k}.jpg", "height": 60, "width": 80})
            outline = [[5, 10, 45, 10, 45, 50, 5, 50]]
            annotations.append({"id": k, "image_id": k, "category_id": number, "iscrowd": 0, "segmentation": outline})
        table = [{"id": number, "name": name} for number, name in categories.items()]
        content = {"images": images, "annotations": annotations, "categories": table}
        (root / f"annotations/instances_{part}2024.json").write_text(json.dumps(content))
    return root


NAMES = [f"thing {i}" for i in range(8)]


def test_a_category_that_is_named_twice_is_refused(tmp_path):
    names = [*NAMES[:-1], NAMES[0]]
    root = annotate(tmp_path / "own", (dict(enumerate(NAMES, 1)), dict(enumerate(names, 1))))
    with pytest.raises(ValueError, match=f"instances_val2024.json names a category twice: {NAMES[0]}"):
        load_benchmark("folder", size=64, root=str(root)).check(0, "train")


def test_a_crowd_is_part_of_its_class(tmp_path):
    root = annotate(tmp_path / "own", (dict(enumerate(NAMES, 1)),) * 2)
    path = root / "annotations/instances_train2024.json"
    content = json.loads(path.read_text())
    crowd = np.zeros((60, 80), np.uint8, order="F")
    crowd[50:, 40:] = 1
    code = rle.encode(crowd)
    part = {"size": code["size"], "counts": code["counts"].decode()}
    content["annotations"].append({"id": 999, "image_id": 1, "category_id": 1, "iscrowd": 1, "segmentation": part})
    path.write_text(json.dumps(content))
    benchmark = load_benchmark("folder", size=64, root=str(root))
    name = next(n for n, c in benchmark.listed("all") if c == 0 and "train" in n and n.endswith("|1.jpg"))
    mask = benchmark.read(name, 0).mask
    assert mask[55, 60]
    assert mask[20, 20]
    assert mask.sum() == pytest.approx(1600 + 400, abs=90)


@pytest.mark.parametrize("turn", [1, 6])
def test_training_sees_a_turned_picture_as_predict_does(tmp_path, turn):
    root = annotate(tmp_path / "own", (dict(enumerate(NAMES, 1)),) * 2, turn)
    benchmark = load_benchmark("folder", size=64, root=str(root))
    episode = test_episodes(benchmark, fold=0, shot=1, count=1)[0]
    sample = benchmark.read(episode.query, episode.class_id)
    seen, _ = read_image(benchmark.image_path(episode.query))
    assert np.array_equal(sample.image, seen)
    assert sample.image[sample.mask].mean() > 190
    assert sample.image[~sample.mask].mean() < 20
