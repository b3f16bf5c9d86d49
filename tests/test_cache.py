"""Caches of resized images and labels."""

import shutil

import pytest
import torch
from drawn_datasets import DATASETS

from hsnet import EpisodeDataset, test_episodes
from hsnet.benchmarks import load_benchmark
from hsnet.benchmarks.cache import build_cache


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_cached_pixels_are_those_of_the_files(datasets, name):
    plain = load_benchmark(name, size=48)
    folder = build_cache(plain, 48)
    assert folder == datasets / name / "cache-48"
    cached = load_benchmark(name, size=48)
    assert cached.cache is not None
    assert load_benchmark(name, size=50).cache is None  # another size: read from the files
    pairs = [pair for split in ("train", "test") for pair in plain.pairs(0, split)]
    for image, class_id in pairs[:: max(1, len(pairs) // 60)]:
        # Of its own class, and of one that it does not show.
        for c in (class_id, (class_id + 1) % len(plain.class_names)):
            ours, expected = cached.read_square(image, c, 48), plain.read_square(image, c, 48)
            for part in ("image", "mask", "objects", "ignored"):
                assert torch.equal(getattr(ours, part), getattr(expected, part)), (image, c, part)
    (datasets / name / "cache-48" / "images.uint8").open("ab").write(b"more")
    with pytest.raises(ValueError, match=r"images.uint8 no longer has its .* bytes: delete that folder"):
        load_benchmark(name, size=48)


def test_an_episode_from_the_cache_is_the_same_batch(datasets):
    build_cache(load_benchmark("pascal", size=48), 48)
    transfer = load_benchmark("coco-to-pascal", size=48)  # shares it
    assert transfer.pairs(0, "test")[0][0] in transfer.cache
    plain, cached = load_benchmark("pascal", size=48), load_benchmark("pascal", size=48)
    plain.cache = None
    shutil.rmtree(datasets / "pascal" / "JPEGImages")  # nothing of it is opened
    episodes = test_episodes(cached, fold=2, shot=2, count=5)
    assert all(len(b.class_id) for b in EpisodeDataset(cached, 48, episodes).loader(2, workers=2))
    with pytest.raises(FileNotFoundError):
        EpisodeDataset(plain, 48, episodes)[0]


def test_a_cache_that_was_cut_off_is_built_again(datasets):
    benchmark = load_benchmark("fss", size=32)
    growing = datasets / "fss" / "cache-32.tmp"
    growing.mkdir()
    (growing / "images.uint8").write_bytes(b"half an image")
    assert load_benchmark("fss", size=32).cache is None  # what is not complete does not have the name
    folder = build_cache(benchmark, 32)
    assert not growing.exists()
    assert "bus/1.jpg" in load_benchmark("fss", size=32).cache
    before = (folder / "index.json").stat().st_mtime_ns
    assert build_cache(benchmark, 32) == folder  # is there
    assert (folder / "index.json").stat().st_mtime_ns == before


def test_no_cache_of_what_has_no_maps_of_labels():
    with pytest.raises(ValueError, match="shapes needs no cache"):
        build_cache(load_benchmark("shapes", size=32), 32)
