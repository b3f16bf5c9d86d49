"""Episodes: the same whatever reads them, artists apart, masks exact; photographs through a small COCO tree."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from hsnet import BENCHMARKS, Batch, EpisodeDataset, test_episodes
from hsnet.benchmarks import load_benchmark
from hsnet.benchmarks.listed import pick
from hsnet.benchmarks.scenes import LEAST_VISIBLE
from hsnet.episodes import resize_mask


@pytest.fixture
def shapes():
    return load_benchmark("shapes", size=64)


def equal(a, b):
    tensors = [name for name, value in vars(a).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


def test_test_episodes_go_round_the_classes(shapes):
    episodes = test_episodes(shapes, fold=1, shot=5, count=50)
    counts = np.bincount([e.class_id for e in episodes], minlength=48)[shapes.classes(1, "test")]
    assert set(counts) <= {6, 7}
    assert episodes == test_episodes(shapes, fold=1, shot=5, count=50)
    assert episodes != test_episodes(shapes, fold=1, shot=5, count=50, seed=1)
    for e in episodes:
        artists = [name.split(".")[3] for name in (e.query, *e.supports)]
        assert artists[0] not in artists[1:]
        assert len(set(artists[1:4])) == 3  # they take turns
        assert len({e.query, *e.supports}) == 6


def test_splits_are_apart(shapes):
    for fold in range(4):
        splits = [set(shapes.classes(fold, split)) for split in ("train", "val", "test")]
        assert [len(s) for s in splits] == [36, 4, 8]
        assert len(set.union(*splits)) == 48
        episode = shapes.draw(np.random.default_rng(0), fold)
        for name in (episode.query, *episode.supports):
            assert {c for c, _ in shapes.objects(name)} <= splits[0]


def test_the_mask_is_what_is_visible(shapes):
    episode = test_episodes(shapes, fold=0, shot=1, count=1)[0]
    scene = shapes.scene(episode.query)
    objects = shapes.objects(episode.query)
    assert 2 <= len(objects) <= 5
    assert len({c for c, _ in objects}) == len(objects)
    for i, (class_id, _) in enumerate(objects):
        sample = shapes.read(episode.query, class_id)
        np.testing.assert_array_equal(sample.mask, scene.labels == i + 1)
    np.testing.assert_array_equal(sample.objects, scene.labels > 0)


def test_scenes_show_their_target(shapes):
    shown = [shapes.read(e.query, e.class_id).mask.mean() for e in test_episodes(shapes, fold=0, shot=1, count=40)]
    assert min(shown) >= LEAST_VISIBLE
    assert 0.05 < np.mean(shown) < 0.4


@pytest.mark.parametrize("workers", [0, 2])
def test_training_episodes_are_a_function_of_seed_epoch_and_index(shapes, workers):
    def batches(batch, epoch, seed=0):
        dataset = EpisodeDataset(shapes, 64, fold=0, count=6, seed=seed)
        dataset.epoch = epoch
        return Batch.stack([*dataset.loader(batch, workers)])

    assert equal(batches(2, 0), batches(3, 0))
    assert equal(batches(6, 0), Batch.stack([EpisodeDataset(shapes, 64, fold=0, count=6)[i] for i in range(6)]))
    assert not equal(batches(2, 0), batches(2, 1))
    assert not equal(batches(2, 0), batches(2, 0, seed=1))


def test_digest_changes_with_what_decides_a_scene(shapes, monkeypatch):
    before = shapes.digest()
    assert before == load_benchmark("shapes", size=64).digest()
    assert before != load_benchmark("shapes", size=96).digest()
    monkeypatch.setattr(type(shapes), "data_version", lambda self: "other drawings")
    assert shapes.digest() != before


def test_errors(shapes):
    with pytest.raises(
        ValueError, match="unknown benchmark 'voc': choose one of emoji, emoji-photo, shapes, pascal, coco, fss"
    ):
        load_benchmark("voc", size=64)
    with pytest.raises(ValueError, match="fold is 7: shapes has the folds 0 to 3"):
        test_episodes(shapes, fold=7, shot=1)
    with pytest.raises(ValueError, match="shot is 0"):
        test_episodes(shapes, fold=0, shot=0)
    with pytest.raises(ValueError, match="protocol is 'mine': shapes has official"):
        test_episodes(shapes, fold=0, shot=1, protocol="mine")
    with pytest.raises(ValueError, match="split is 'training'"):
        shapes.classes(0, "training")
    assert set(BENCHMARKS) == {"emoji", "emoji-photo", "shapes", "pascal", "coco", "fss", "coco-to-pascal"}


def test_masks_are_resized_to_the_nearest_rounding_down():
    mask = np.array([[True, False, False], [False, False, True], [False, True, False]])
    index = np.arange(2) * 3 // 2
    np.testing.assert_array_equal(resize_mask(mask, 2).numpy(), mask[np.ix_(index, index)])


# A COCO tree of twelve drawn images, each with two classes.


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
