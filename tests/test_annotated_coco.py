"""COCO straight from its annotations, as a drawn data set of twelve images, each with two classes."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from hsnet import EpisodeDataset, test_episodes
from hsnet.benchmarks import load_benchmark
from hsnet.benchmarks.listed import pick


@pytest.fixture
def coco_root(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    categories = [{"id": 2 * c + 1, "name": f"thing {c}"} for c in range(8)]  # ids with gaps, as COCO's
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for i in range(12):
            h, w = (60, 80) if i % 2 else (90, 70)
            Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)).save(root / f"{split}2017" / f"{i:03d}.jpg")
            images.append({"id": 100 + i, "file_name": f"{i:03d}.jpg", "height": h, "width": w})
            for j, category in enumerate((i % 8, (i + 3) % 8)):
                x, y = 5 + 30 * j, 10
                polygon = [x, y, x + 30, y, x + 30, y + 40, x, y + 40]
                annotations.append(
                    {
                        "id": 2 * i + j + 1,
                        "image_id": 100 + i,
                        "category_id": 2 * category + 1,
                        "iscrowd": 0,
                        "area": 1200.0,
                        "segmentation": [polygon],
                    }
                )
        if split == "val":  # a crowd, as COCO stores it, and an object too small to count
            crowd = np.zeros((60, 80), np.uint8, order="F")
            crowd[50:, 40:] = 1
            code = rle.encode(crowd)
            annotations.append(
                {
                    "id": 98,
                    "image_id": 101,
                    "category_id": 3,
                    "iscrowd": 1,
                    "area": 400.0,
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                }
            )
            annotations.append(
                {
                    "id": 99,
                    "image_id": 101,
                    "category_id": 13,
                    "iscrowd": 0,
                    "area": 9.0,
                    "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]],
                }
            )
        (root / "annotations" / f"instances_{split}2017.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def test_coco_reads_photographs(coco_root):
    coco = load_benchmark("coco", size=64, root=str(coco_root))
    assert coco.class_names[6] == "thing 6"
    assert coco.classes(2, "test") == [2, 6]
    assert coco.classes(2, "train") == [0, 1, 3, 4, 5, 7]
    assert coco.images(1, "test") == {
        1: ["val2017/001.jpg", "val2017/006.jpg", "val2017/009.jpg"],
        5: ["val2017/002.jpg", "val2017/005.jpg", "val2017/010.jpg"],
    }
    sample = coco.read("val2017/001.jpg", 1)
    expected = np.zeros((60, 80), bool)
    expected[10:50, 5:35] = True
    expected[50:, 40:] = True  # the crowd is part of the class
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.objects.sum() > sample.mask.sum()
    batch = EpisodeDataset(coco, 64, fold=0, count=3)[0]
    assert batch.query.shape == (1, 3, 64, 64)
    assert batch.support_mask.any()


def test_coco_episodes_are_the_official_draw(coco_root):
    coco = load_benchmark("coco", size=64, root=str(coco_root))
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


def test_coco_that_is_not_there(coco_root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no annotations/instances_train\*.json under .*--root"):
        load_benchmark("coco", size=64, root=str(tmp_path / "nowhere"))
    (coco_root / "val2017" / "001.jpg").unlink()
    coco = load_benchmark("coco", size=64, root=str(coco_root))
    with pytest.raises(FileNotFoundError, match=r"001.jpg is listed but not there"):
        coco.read("val2017/001.jpg", 1)
