"""Data sets as people have them: other category numbers, turned pictures, the published flaw of FSS-1000, a bad test file."""

import json

import drawn_datasets
import numpy as np
import pytest
from PIL import Image

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


def test_categories_are_matched_by_name(tmp_path):
    training = dict(enumerate(NAMES, 1))
    others = dict(enumerate(reversed(NAMES), 101))  # other numbers, in another order
    benchmark = load_benchmark("coco", size=64, root=str(annotate(tmp_path / "own", (training, others))))
    by_name = {name: number for number, name in others.items()}
    path = tmp_path / "own/annotations/instances_val2024.json"
    shown = {a["image_id"]: a["category_id"] for a in json.loads(path.read_text())["annotations"]}
    for episode in test_episodes(benchmark, fold=0, shot=1, count=20):
        image = int(episode.query.split("/")[-1].split(".")[0])
        assert shown[image] == by_name[benchmark.class_names[episode.class_id]]


@pytest.mark.parametrize("names", [[*NAMES[:-1], "another"], [*NAMES[:-1], NAMES[0]]], ids=["unknown", "double"])
def test_names_that_do_not_match_are_refused(tmp_path, names):
    root = annotate(tmp_path / "own", (dict(enumerate(NAMES, 1)), dict(enumerate(names, 1))))
    with pytest.raises(ValueError, match=f"instances_val2024.json.*{names[-1]}"):
        load_benchmark("coco", size=64, root=str(root))


@pytest.mark.parametrize("turn", [1, 6])
def test_training_sees_a_turned_picture_as_predict_does(tmp_path, turn):
    root = annotate(tmp_path / "own", (dict(enumerate(NAMES, 1)),) * 2, turn)
    benchmark = load_benchmark("coco", size=64, root=str(root))
    episode = test_episodes(benchmark, fold=0, shot=1, count=1)[0]
    sample = benchmark.read(episode.query, episode.class_id)
    seen, _ = read_image(root / episode.query)
    assert np.array_equal(sample.image, seen)
    assert sample.image[sample.mask].mean() > 190
    assert sample.image[~sample.mask].mean() < 20


def test_fss_is_tested_with_its_published_flaw(tmp_path, monkeypatch):
    """A mask of 960 × 480, RGB, beside a picture of another size; it is resized to the square, as the authors do."""
    root, splits = tmp_path / "fss", tmp_path / "splits"
    drawn_datasets.fss(root, splits, ("ab_wheel", "bus", "peregine_falcon"))
    monkeypatch.setenv("HSNET_SPLITS", str(splits))
    mask = np.zeros((480, 960, 3), np.uint8)
    mask[120:360, 240:720] = 255
    Image.fromarray(mask).save(root / "peregine_falcon/8.png")
    benchmark = load_benchmark("fss", size=64, root=str(root))
    (class_id,) = benchmark.classes(0, "test")
    assert benchmark.flaws("peregine_falcon/8.jpg", 64) == []
    square = benchmark.read_square("peregine_falcon/8.jpg", class_id, 64)
    assert square.mask[16:48, 16:48].all()
    assert square.mask.float().mean() == 0.25
    texts = [finding.text for finding in benchmark.verify(None)]
    assert any("peregine_falcon/8.png" in text and "published" in text for text in texts)


def test_a_bad_test_file_is_named_before_the_first_step(datasets, data, call):
    bad = datasets / "fss/bus/3.png"
    bad.write_bytes(bad.read_bytes()[:30])
    options = {
        "benchmark": "fss",
        "size": 64,
        "batch": 2,
        "epochs": 1,
        "backbone": "efficientnet_lite0",
        "shot": "1",
        "workers": 0,
    }
    result = call("train", *(f"--{name}={value}" for name, value in options.items()))
    assert result.returncode == 2
    assert str(bad) in result.stderr
    assert not list((data / "runs").glob("*/last.pt"))
