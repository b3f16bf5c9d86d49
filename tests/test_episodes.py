"""Episodes of every benchmark: the same whatever reads them, classes and artists apart, masks exact."""

import numpy as np
import pytest
import torch
from drawn_datasets import StandIns, with_stand_ins
from helpers import names

from hsnet import BENCHMARKS, Batch, EpisodeDataset, test_episodes
from hsnet.benchmarks import load_benchmark
from hsnet.benchmarks.drawn import DrawnBenchmark
from hsnet.benchmarks.emoji import UNSEEN_ARTIST, Emoji
from hsnet.benchmarks.scenes import LEAST_VISIBLE, compose
from hsnet.prepare.__main__ import PREPARED

DRAWN = [name for name, kind in BENCHMARKS.items() if issubclass(kind, DrawnBenchmark)]


@pytest.fixture
def shapes():
    return load_benchmark("shapes", size=64)


@pytest.fixture
def emoji():
    """The real list of concepts, with stand-ins for the drawings."""
    return with_stand_ins(Emoji)


def equal(a, b):
    tensors = [name for name, value in vars(a).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


def opened(name):
    """Any benchmark at 64 px: its files are drawn, emoji have stand-ins."""
    kind = BENCHMARKS[name]
    return with_stand_ins(kind) if issubclass(kind, Emoji) else load_benchmark(name, size=64)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_keeps_the_contract(datasets, monkeypatch, name):
    benchmark = opened(name)
    assert BENCHMARKS[name].name == name == benchmark.name
    assert benchmark.title
    assert not benchmark.prepared or benchmark.prepared in PREPARED  # what errors advise
    for fold in range(benchmark.folds):
        train, test = (set(benchmark.classes(fold, split)) for split in ("train", "test"))
        assert train <= set(range(len(benchmark.class_names)))
        assert not train & test
        for shot, place in ((1, None), (5, None), (1, 0), (3, benchmark.training_queries(fold) - 1)):
            first, again = (benchmark.draw(np.random.default_rng(7), fold, shot, place) for _ in range(2))
            assert first == again
            assert len(first.supports) == shot
            assert first.query not in first.supports
            assert first.class_id in train
        for split in ("val", "test"):
            episodes = test_episodes(benchmark, fold=fold, shot=2, count=9, split=split)
            assert episodes == test_episodes(opened(name), fold=fold, shot=2, count=9, split=split)
            assert {e.class_id for e in episodes} <= set(benchmark.classes(fold, split))
        benchmark.check(fold, "train")
    sample = benchmark.read(first.query, first.class_id)
    assert sample.image.shape == (*sample.mask.shape, 3)
    assert sample.image.dtype == np.uint8
    assert all(m.dtype == bool and m.shape == sample.mask.shape for m in (sample.mask, sample.objects, sample.ignored))
    assert not (sample.mask & ~sample.objects).any()
    assert benchmark.read_square(first.query, first.class_id, 32).image.shape == (3, 32, 32)
    assert benchmark.flaws(first.query, 64) == []
    assert benchmark.digest() == opened(name).digest()
    # An epoch can ask for each query once.
    monkeypatch.setattr(benchmark, "each_query_once", True)
    count = min(benchmark.training_queries(0), 300)
    drawn = [EpisodeDataset(benchmark, 64, fold=0, count=count).episode(i) for i in range(count)]
    assert len({(e.query, e.class_id) for e in drawn}) == count


def test_what_a_run_was_trained_on():
    pascal, coco, transfer = (BENCHMARKS[name]() for name in ("pascal", "coco", "coco-to-pascal"))
    assert transfer.seen(1, coco, 1) == []
    assert transfer.seen(2, coco, 1) == [transfer.class_names[c] for c in transfer.classes(2, "test")]
    assert pascal.seen(0, coco, 0) == ["bicycle", "bird", "bottle"]
    assert len(coco.seen(0, pascal, 1)) == 5
    assert coco.seen(0, BENCHMARKS["fss"](), 0) == BENCHMARKS["emoji"]().seen(0, coco, 1) == []
    emoji = BENCHMARKS["emoji"]()
    assert emoji.seen(0, emoji, 0) == []


@pytest.mark.parametrize("name", DRAWN)
def test_test_episodes_go_round_classes_and_artists(name):
    benchmark = opened(name)
    classes = benchmark.classes(1, "test")
    episodes = test_episodes(benchmark, fold=1, shot=5, count=200)
    counts = np.bincount([e.class_id for e in episodes], minlength=len(benchmark.class_names))[classes]
    assert counts.sum() == 200
    assert counts.max() - counts.min() <= 1
    assert episodes != test_episodes(benchmark, fold=1, shot=5, count=200, seed=1)
    for e in episodes:
        query, *supports = [n.split(".")[3] for n in names(e)]
        assert query not in supports
        assert len(set(supports)) == min(5, len(benchmark.artists(e.class_id, "test")) - 1)  # they take turns
        assert len({e.query, *e.supports}) == 6


@pytest.mark.parametrize("name", DRAWN)
def test_splits_are_apart(name):
    benchmark, rng = opened(name), np.random.default_rng(0)
    for fold in range(benchmark.folds):
        train, val, test = (set(benchmark.classes(fold, split)) for split in ("train", "val", "test"))
        assert len(train | val | test) == len(train) + len(val) + len(test) == len(benchmark.class_names)
        assert len(val) == len(val | test) // 3
        for _ in range(20):
            episode = benchmark.draw(rng, fold)
            assert {c for n in names(episode) for c, _ in benchmark.objects(n)} <= train


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
    for name, message in (("voc", f"choose one of {', '.join(BENCHMARKS)}"), ("emoji-photo", "it was removed; train")):
        with pytest.raises(ValueError, match=f"'{name}': {message}"):
            load_benchmark(name, size=64)
    for wrong, message in (
        ({"fold": 7}, "fold is 7: shapes has the folds 0 to 3"),
        ({"shot": 0}, "shot is 0"),
        ({"protocol": "mine"}, "protocol is 'mine': shapes has official"),
        ({"split": "training"}, "split is 'training'"),
    ):
        with pytest.raises(ValueError, match=message):
            test_episodes(shapes, **{"fold": 0, "shot": 1, **wrong})
    for few in ({"class_names": ["star"] * 11}, {"folds": 1}, {"artists": lambda *_: ["flat"]}):
        with pytest.raises(ValueError, match="shapes needs at least two folds, three classes in each, two artists"):
            test_episodes(type("Few", (type(shapes),), few)(), fold=few.get("folds", 4) - 1, shot=1)


def test_the_unseen_artist_is_never_trained_on(emoji):
    rng = np.random.default_rng(0)
    drawn = [name for _ in range(200) for name in names(emoji.draw(rng, 0))]
    drawn_by = {artist for name in drawn for _, artist in emoji.objects(name)}
    assert UNSEEN_ARTIST not in drawn_by
    assert len(drawn_by) == 6
    tested = {e.query.split(".")[3] for e in test_episodes(emoji, fold=0, shot=1, count=300)}
    assert UNSEEN_ARTIST in tested


def test_siblings_never_stand_beside_each_other(emoji):
    for episode in test_episodes(emoji, fold=2, shot=1, count=100):
        objects = [c for c, _ in emoji.objects(episode.query)]
        families = [emoji.concepts[c].family for c in objects]
        assert len(set(families)) == len(families)


def test_scenes_have_no_halos_and_exact_masks():
    disc = StandIns().alpha
    white = np.stack([disc] * 4, axis=-1)
    black = np.stack([0 * disc] * 3 + [disc], axis=-1)
    for sprite in (white, black):
        a, b = (compose(np.random.default_rng(5), [s], 96) for s in (sprite, black))
        np.testing.assert_array_equal(a.labels, b.labels)
        # Where nothing is drawn the background is untouched, whatever the colour of what lies on it.
        inside = b.labels > 0
        grown = inside.copy()
        for axis in (0, 1):
            grown |= np.roll(inside, 2, axis) | np.roll(inside, -2, axis)
        np.testing.assert_array_equal(a.image[~grown], b.image[~grown])
        assert (b.image[inside].astype(int).mean() < 40).all()
