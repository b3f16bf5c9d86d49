"""PASCAL-5i, COCO-20i, FSS-1000: settings, official and strict episodes, their files. Data sets are drawn by the tests.

The authors' own episodes are compared where HSNET_SPLITS names the official lists.
"""

import gzip
import json
import os
import re
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from helpers import names
from kit.golden import FOLDER

from hsnet import Config, paper, test_episodes
from hsnet.benchmarks import coco, load_benchmark, pascal
from hsnet.benchmarks.splits import read_coco, read_fss, read_pascal
from hsnet.config import TEST_LISTS
from hsnet.episodes import test_lists
from hsnet.model import VOTE_RULES
from hsnet.paths import images_folder

OFFICIAL_LISTS = os.environ.get("HSNET_SPLITS")
NOT_SHIPPED = "the official split lists are not shipped: `python -m hsnet.prepare splits`, set HSNET_SPLITS"
needs_lists = pytest.mark.skipif(not OFFICIAL_LISTS, reason=NOT_SHIPPED)


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The official lists without any image; COCO is asked for with masks."""
    monkeypatch.setenv("HSNET_SPLITS", OFFICIAL_LISTS)
    monkeypatch.setenv("HSNET_IMAGES", str(tmp_path))
    (tmp_path / "coco" / "masks" / "val2014").mkdir(parents=True)


def golden_lists():
    files = ("episodes.json.gz", "episodes_fss.json.gz")
    return {k: v for file in files for k, v in json.loads(gzip.decompress((FOLDER / file).read_bytes())).items()}


def test_the_papers_settings():
    config = paper("pascal", "resnet101", 3)
    assert (config.epochs, config.patience, config.precision, config.batch) == (2000, 100, "float32", 20)
    assert (config.protocol, config.novel_images) == ("official", "keep")
    assert (config.boundary, config.rule) == ("background", "paper")
    assert (config.optimizer, config.learning_rate, config.schedule, config.size) == ("adam", 1e-3, "constant", 400)
    assert (config.val_episodes, config.test_episodes, config.epoch_episodes) == (1000, 1000, 0)
    assert paper("coco").batch == 40
    assert paper("fss").test_episodes == paper("fss").val_episodes == 2400
    assert paper("pascal").run != Config(**{**vars(paper("pascal")), "protocol": "strict"}).run


def test_settings_reach_the_benchmark(datasets):
    config = Config(**{**vars(paper("pascal")), "protocol": "strict", "novel_images": "drop"})
    benchmark = config.load_benchmark()
    assert (benchmark.protocol, benchmark.novel_images) == ("strict", "drop")
    with pytest.raises(ValueError, match="protocol is 'mine': choose one of official, strict"):
        Config(protocol="mine")
    with pytest.raises(ValueError, match="fold is 1: fss has one split only, --fold 0"):
        load_benchmark("fss", size=64).classes(1, "test")
    assert next(f for f in fields(Config) if f.name == "rule").metadata["choices"] == (*VOTE_RULES, "mean")


@needs_lists
@pytest.mark.parametrize("case", sorted(golden_lists()))
def test_official_episodes_are_the_authors(official, case):
    """Every fold and shot, from the lists alone: no pixel is read, there is no image."""
    benchmark, fold, shot = re.fullmatch(r"(\w+?)(?:-fold(\d))?-(\d)shot", case).groups()
    theirs = golden_lists()[case]
    ours = test_episodes(load_benchmark(benchmark, size=400), fold=int(fold or 0), shot=int(shot), count=len(theirs))
    assert [[e.query, e.class_id, *e.supports] for e in ours] == theirs


@needs_lists
def test_an_epoch_is_as_long_as_the_papers_and_how_many_pairs_show_novel_classes(official):
    paper_iterations = {"pascal": [570, 513, 390, 580], "coco": [1551, 1860, 1826, 1846], "fss": [260]}
    for name, iterations in paper_iterations.items():
        benchmark, batch = load_benchmark(name, size=400), paper(name).batch
        assert [-(-benchmark.training_queries(fold) // batch) for fold in range(benchmark.folds)] == iterations
    keep, drop = (load_benchmark("pascal", size=400, novel_images=option) for option in ("keep", "drop"))
    share = [1 - drop.training_queries(f) / keep.training_queries(f) for f in range(4)]
    assert [round(100 * s) for s in share] == [7, 17, 29, 10]


@needs_lists
def test_five_shot_supports_repeat_officially_and_never_strictly(official):
    def repeats(name, fold, protocol):
        episodes = test_episodes(load_benchmark(name, size=400), fold=fold, shot=5, protocol=protocol)
        return sum(len(set(e.supports)) < 5 for e in episodes)

    assert [repeats("pascal", fold, "official") for fold in range(4)] == [133, 112, 53, 133]
    for name, folds in (("pascal", 4), ("coco", 4), ("fss", 1)):
        assert sum(repeats(name, fold, "strict") for fold in range(folds)) == 0


def test_official_episodes_are_calls_of_the_legacy_generator(datasets):
    benchmark = load_benchmark("coco", size=64)
    lists = benchmark.images(1, "test")
    np.random.seed(0)
    one_of = lambda names: np.random.choice(names, 1, replace=False)[0]  # noqa: E731
    for episode in test_episodes(benchmark, fold=1, shot=5, count=20):
        class_id = one_of(list(lists))
        query, supports = one_of(lists[class_id]), []
        while len(supports) < 5:
            supports += [name for name in [one_of(lists[class_id])] if name != query]
        assert (episode.class_id, episode.query, list(episode.supports)) == (class_id, query, supports)


@pytest.mark.parametrize("name", ["pascal", "coco"])
def test_strict_keeps_the_highest_classes_of_each_training_fold_back(datasets, name):
    benchmark = load_benchmark(name, size=64, protocol="strict")
    back = 1 if name == "pascal" else 3
    for fold in range(4):
        train, val, test = (set(benchmark.classes(fold, split)) for split in ("train", "val", "test"))
        every = {c for c in range(len(benchmark.class_names)) if benchmark.fold_of(c) != fold}
        by_fold = [sorted(c for c in every if benchmark.fold_of(c) == f)[-back:] for f in range(4) if f != fold]
        assert val == {c for kept in by_fold for c in kept}
        assert len(val) == 3 * back
        assert train == every - val
        assert test == {c for c in range(len(benchmark.class_names)) if benchmark.fold_of(c) == fold}
        # Validation asks for them in training images: no pixel of a test image is seen before the test.
        asked = {n for e in test_episodes(benchmark, fold=fold, shot=1, split="val", count=100) for n in names(e)}
        assert asked <= {n for n, _ in benchmark.listed("train")}
        assert not asked & {n for n, _ in benchmark.listed("val")}
        for i in range(50):
            assert benchmark.draw(np.random.default_rng(i), fold).class_id in train


def test_strict_asks_five_lists_with_distinct_supports(datasets):
    for name in ("pascal", "coco", "fss"):
        benchmark = load_benchmark(name, size=64, protocol="strict")
        lists = test_lists(benchmark, fold=0, shot=4, count=60)
        assert len(lists) == TEST_LISTS["strict"] == 5
        assert all(a != b for a, b in pairwise(lists))
        assert all(len({*names(e)}) == 5 for episodes in lists for e in episodes)
        official = test_lists(benchmark.under("official"), fold=0, shot=4, count=60)
        assert len(official) == 1
        assert any(len(set(e.supports)) < 4 for e in official[0])
        assert benchmark.digest() != benchmark.under("official").digest()  # never in one table


def test_lists_that_are_too_short(datasets):
    with pytest.raises(ValueError, match=r"test: class 2 \(bus\) has 10 images, an episode of 10 supports needs 11"):
        test_episodes(load_benchmark("fss", size=64), fold=0, shot=10, protocol="strict")
    assert len(test_episodes(load_benchmark("fss", size=64), fold=0, shot=10, count=3)) == 3
    path = datasets / "splits" / "pascal" / "trn" / "fold0.txt"
    every = {line.split("__")[0] for fold in range(4) for line in (path.parent / f"fold{fold}.txt").open()}
    path.write_text("".join(f"{name}__01\n" for name in sorted(every)))
    with pytest.raises(ValueError, match=r"train: class 5 \(bus\) has 0 images.*use --novel-images keep"):
        load_benchmark("pascal", size=64, novel_images="drop").check(0, "train")


def test_coco_draws_the_class_first(datasets):
    benchmark = load_benchmark("coco", size=64)
    assert benchmark.training_queries(0) == 240 == len({n for n, _ in benchmark.pairs(0, "train")})
    drawn = [benchmark.draw(np.random.default_rng(i), 0) for i in range(300)]
    counts = np.bincount([e.class_id for e in drawn], minlength=80)
    assert counts.reshape(20, 4)[:, 0].sum() == 0
    assert 45 <= (counts > 0).sum() <= 60
    assert all(e.query in benchmark.images(0, "train")[e.class_id] for e in drawn)


@pytest.mark.parametrize("name", ["pascal", "coco"])
@pytest.mark.parametrize("protocol", ["official", "strict"])
def test_dropping_images_that_show_novel_classes(datasets, name, protocol):
    keep, drop = (load_benchmark(name, size=64, novel_images=option, protocol=protocol) for option in ("keep", "drop"))
    for fold in range(4):
        trained = {c + 1 for c in drop.classes(fold, "train")}
        for image, _ in drop.pairs(fold, "train"):
            assert set(np.unique(drop.picture(image)[1])) - {0, 255} <= trained
        assert 0 < len(drop.pairs(fold, "train")) < len(keep.pairs(fold, "train"))
        assert drop.pairs(fold, "test") == keep.pairs(fold, "test")


def test_coco_to_pascal_asks_for_no_class_of_its_model(datasets):
    same = {"aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "sofa": "couch"}
    same |= {"pottedplant": "potted plant", "tvmonitor": "tv"}
    assert [coco.CLASSES[i] for i in pascal.COCO_IDS] == [same.get(name, name) for name in pascal.CLASSES]
    transfer, source = load_benchmark("coco-to-pascal", size=64), load_benchmark("coco", size=64)
    listed = {n for n, _ in load_benchmark("pascal", size=64).listed("val")}
    folds = [transfer.classes(fold, "test") for fold in range(4)]
    assert [len(f) for f in folds] == [6, 4, 6, 4]
    assert sorted(c for classes in folds for c in classes) == list(range(20))
    for fold, classes in enumerate(folds):
        trained = source.classes(fold, "train")
        assert not {pascal.COCO_IDS[c] for c in classes} & set(trained)
        episodes = test_episodes(transfer, fold=fold, shot=1, count=200)
        assert {e.class_id for e in episodes} == set(classes)
        assert {n for e in episodes for n in names(e)} <= listed
    assert transfer.source()["episodes"] == "ours"
    assert transfer.root == images_folder("pascal")


@needs_lists
def test_coco_to_pascal_asks_for_every_validation_image(official):
    transfer = load_benchmark("coco-to-pascal", size=400)
    for fold in range(4):
        episodes = test_episodes(transfer, fold=fold, shot=1)
        assert {(e.query, e.class_id) for e in episodes} == set(transfer.pairs(fold, "test"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("pascal/val/fold0.txt", b"2007_000100__01\n2007_000101__21\n", "line 2: class 21 does not exist, they are 1"),
        ("pascal/val/fold0.txt", b"<html>\n", "line 1: '<html>' is not IMAGE__CLASS"),
        ("coco/val.json", json.dumps({c: [1, 2] for c in range(81)}).encode(), r"the classes 0 to 79.* \[80\]"),
        ("coco/val.json", json.dumps({c: [1, 2] for c in range(79)}).encode(), r"the classes 0 to 79.* \[79\]"),
        ("coco/val.json", b"[1, 2]", "is damaged"),
        ("coco/val.json.gz", gzip.compress(b'{"0": [1]}', mtime=0)[:15], "is damaged"),
        ("fss/val.txt", None, "no list"),
    ],
)
def test_lists_that_are_wrong(datasets, file, content, message):
    path = datasets / "splits" / file
    path.with_suffix("").unlink(missing_ok=True)  # of coco/val.json.gz
    path.write_bytes(content) if content else path.unlink()
    read = {"pascal": lambda: read_pascal("val", 0), "coco": lambda: read_coco("val"), "fss": lambda: read_fss("val")}
    remedy = "fetch .*hsnet.prepare splits`, or set HSNET"
    with pytest.raises((ValueError, FileNotFoundError), match=f"{message}.*{remedy}"):
        read[file.split("/")[0]]()
