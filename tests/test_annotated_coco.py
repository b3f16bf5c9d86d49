"""COCO straight from its annotations: any categories, matched by name; turned pictures; the official draw."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from hsnet import EpisodeDataset, test_episodes
from hsnet.benchmarks import load_benchmark
from hsnet.benchmarks.listed import pick
from hsnet.pictures import read_image

NAMES = [f"thing {i}" for i in range(8)]
GAPS = {2 * c + 1: name for c, name in enumerate(NAMES)}  # ids with gaps, as COCO's


def annotate(root, names=(GAPS, GAPS), turn=1, extra=()):
    """A COCO data set of four pictures a class; `names` are those of training and validation, by category number.

    `extra`: annotations that validation has beside one rectangle an image.
    """
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
        annotations += [a | {"id": 100 + i} for i, a in enumerate(extra if part == "val" else ())]
        table = [{"id": number, "name": name} for number, name in categories.items()]
        content = {"images": images, "annotations": annotations, "categories": table}
        (root / f"annotations/instances_{part}2024.json").write_text(json.dumps(content))
    return root


def test_coco_reads_photographs(tmp_path):
    crowd = np.zeros((60, 80), np.uint8, order="F")
    crowd[50:, 40:] = 1
    code = rle.encode(crowd)
    runs = {"size": code["size"], "counts": code["counts"].decode()}
    small = {"image_id": 5, "category_id": 13, "iscrowd": 0, "area": 9.0, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}
    extra = [{"image_id": 5, "category_id": 3, "iscrowd": 1, "area": 400.0, "segmentation": runs}, small]
    coco = load_benchmark("coco", size=64, root=str(annotate(tmp_path, extra=extra)))
    assert coco.class_names[6] == "thing 6"
    assert coco.classes(2, "test") == [2, 6]
    assert coco.classes(2, "train") == [0, 1, 3, 4, 5, 7]
    assert coco.images(1, "test") == {c: [f"val2024/{4 * c + k}.jpg" for k in (1, 2, 3, 4)] for c in (1, 5)}
    assert "val2024/5.jpg" in coco.images(2, "test")[6]  # small objects count where the classes are one's own
    sample = coco.read("val2024/5.jpg", 1)
    expected = np.zeros((60, 80), bool)
    expected[10:50, 5:45] = True
    expected[50:, 40:] = True  # the crowd is part of the class
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.objects.sum() > sample.mask.sum()
    batch = EpisodeDataset(coco, 64, fold=0, count=3)[0]
    assert batch.query.shape == (1, 3, 64, 64)
    assert batch.support_mask.any()


def test_coco_episodes_are_the_official_draw(tmp_path):
    coco = load_benchmark("coco", size=64, root=str(annotate(tmp_path)))
    episodes = test_episodes(coco, fold=1, shot=5, count=20)
    lists = coco.images(1, "test")
    np.random.seed(0)  # the protocol is written in calls of the legacy generator
    for episode in episodes:
        class_id = np.random.choice(list(lists), 1, replace=False)[0]
        query = np.random.choice(lists[class_id], 1, replace=False)[0]
        supports = []
        while len(supports) < 5:
            name = np.random.choice(lists[class_id], 1, replace=False)[0]
            if name != query:
                supports.append(name)
        assert (episode.class_id, episode.query, list(episode.supports)) == (class_id, query, supports)
    assert pick(np.random.RandomState(3), [4, 5, 6]) == np.random.RandomState(3).choice([4, 5, 6], 1, replace=False)[0]


def test_coco_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no annotations/instances_train\*.json under .*--root"):
        load_benchmark("coco", size=64, root=str(tmp_path / "nowhere"))
    coco = load_benchmark("coco", size=64, root=str(annotate(tmp_path / "own")))
    (tmp_path / "own/val2024/5.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"5.jpg is listed but not there"):
        coco.read("val2024/5.jpg", 1)


def test_categories_are_matched_by_name(tmp_path):
    others = dict(enumerate(reversed(NAMES), 101))  # other numbers, in another order
    benchmark = load_benchmark("coco", size=64, root=str(annotate(tmp_path, (GAPS, others))))
    by_name = {name: number for number, name in others.items()}
    path = tmp_path / "annotations/instances_val2024.json"
    shown = {a["image_id"]: a["category_id"] for a in json.loads(path.read_text())["annotations"]}
    for episode in test_episodes(benchmark, fold=0, shot=1, count=20):
        image = int(episode.query.split("/")[-1].split(".")[0])
        assert shown[image] == by_name[benchmark.class_names[episode.class_id]]


@pytest.mark.parametrize("names", [[*NAMES[:-1], "another"], [*NAMES[:-1], NAMES[0]]], ids=["unknown", "double"])
def test_names_that_do_not_match_are_refused(tmp_path, names):
    root = annotate(tmp_path, (GAPS, dict(enumerate(names, 1))))
    with pytest.raises(ValueError, match=f"instances_val2024.json.*{names[-1]}"):
        load_benchmark("coco", size=64, root=str(root))


@pytest.mark.parametrize("turn", [1, 6])
def test_training_sees_a_turned_picture_as_predict_does(tmp_path, turn):
    benchmark = load_benchmark("coco", size=64, root=str(annotate(tmp_path, turn=turn)))
    episode = test_episodes(benchmark, fold=0, shot=1, count=1)[0]
    sample = benchmark.read(episode.query, episode.class_id)
    seen, _ = read_image(tmp_path / episode.query)
    assert np.array_equal(sample.image, seen)
    assert sample.image[sample.mask].mean() > 190
    assert sample.image[~sample.mask].mean() < 20
