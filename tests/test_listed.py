"""Images and masks of PASCAL, COCO and FSS-1000: what is read, what is cached, and files that are missing or broken."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_datasets import DATASETS
from helpers import TINY
from PIL import Image

from hsnet import Config, EpisodeDataset, test_episodes
from hsnet.baselines import any_object
from hsnet.benchmarks import UnreadableFileError, coco, load_benchmark
from hsnet.benchmarks.cache import build_cache
from hsnet.benchmarks.resize import resize_image, resize_labels, resize_mask
from hsnet.engine import Learner, evaluate, pixel_loss, pixel_weight


def test_pascal_masks_with_palette_or_grey(datasets):
    benchmark = load_benchmark("pascal", size=64)
    for i in (0, 1):
        name = f"2007_{i:06d}"
        assert Image.open(benchmark.mask_path(name)).mode == ("P" if i else "L")
        sample = benchmark.read(name, i)
        expected = np.zeros(sample.mask.shape, bool)
        expected[23:67, 8:42] = True
        np.testing.assert_array_equal(sample.mask, expected)
        assert sample.objects.sum() == 2 * sample.mask.sum()
        outline = np.zeros_like(expected)
        outline[20:70, 5:45] = outline[20:70, 50:90] = True
        np.testing.assert_array_equal(sample.ignored, outline & ~sample.objects)


def test_fss_masks_of_any_mode(datasets):
    benchmark = load_benchmark("fss", size=64)
    modes = set()
    for i in range(1, 11):
        modes.add(Image.open(benchmark.mask_path(f"bus/{i}.jpg")).mode)
        sample = benchmark.read(f"bus/{i}.jpg", 2)
        expected = np.zeros((60, 60), bool)
        expected[10 : 30 + i, 15:45] = True
        expected[0, 1] = True  # 128; its neighbour, 127, is background
        np.testing.assert_array_equal(sample.mask, expected)
        assert not sample.ignored.any()
    assert modes == {"L", "RGB", "RGBA"}
    # A palette's numbers are no channels.
    Image.open(datasets / "fss/bus/1.png").convert("RGB").quantize(2).save(datasets / "fss/bus/2.png")
    np.testing.assert_array_equal(benchmark.read("bus/2.jpg", 2).mask, benchmark.read("bus/1.jpg", 2).mask)


def test_coco_reads_the_masks_that_were_prepared(datasets):
    benchmark = load_benchmark("coco", size=64)
    assert isinstance(benchmark, coco.Coco)
    name = benchmark.listed("val")[0][0]
    assert name == "val2014/COCO_val2014_000000000003.jpg"
    sample = benchmark.read(name, 0)
    assert sample.mask[5:25, 3:16].all()
    assert 2 * sample.mask.sum() == sample.objects.sum() == 2 * 20 * 13
    assert benchmark.source() == {"lists": "official", "source": "ours", "crowd": True}
    before = benchmark.digest()
    (datasets / "coco" / "masks" / "source.json").write_text('{"source": "authors"}')
    assert load_benchmark("coco", size=64).digest() != before
    (datasets / "coco" / "masks").rename(datasets / "coco" / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no masks of COCO 2014 under .*hsnet.prepare coco"):
        load_benchmark("coco", size=64)


def test_the_query_can_be_scored_at_its_own_size(datasets):
    benchmark = load_benchmark("pascal", size=64)
    dataset = EpisodeDataset(benchmark, 64, test_episodes(benchmark, fold=0, shot=2, count=4), original_size=True)
    assert (dataset[0].query.shape, dataset[0].support_mask.shape) == ((1, 3, 64, 64), (1, 2, 64, 64))
    classes = benchmark.classes(0, "test")
    scores = evaluate(lambda b: {"objects": any_object(b)}, dataset, classes, batch=3, workers=0, title="")
    areas = [benchmark.read(e.query, e.class_id).mask.sum() for e in dataset.episodes]
    # Intersections of the foreground, in the image's own pixels.
    assert [row[2] for row in scores["objects"].rows] == areas


def test_boundaries_count_in_the_loss_only_if_asked_for():
    logits = torch.tensor([0.0, 0.3]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    truth, ignored = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    truth[0, 0], ignored[0, 1] = True, True
    weight = torch.tensor([1.0, 2.0])
    loss = {
        option: (pixel_loss(logits, truth, weight, pixels) / pixel_weight(truth, weight, pixels)).item()
        for option, pixels in (("background", None), ("ignore", ignored))
    }
    foreground, background = np.log1p(np.exp(-0.3)), np.log1p(np.exp(0.3))
    assert loss["background"] == pytest.approx((2 * 4 * foreground + 12 * background) / 20, rel=1e-5)
    assert loss["ignore"] == pytest.approx((2 * 4 * foreground + 8 * background) / 16, rel=1e-5)


def broken_off(path):
    path.write_bytes(path.read_bytes()[:400])


KINDS = {  # of an image or its mask: how it is broken, and what is said
    "missing": (".jpg", Path.unlink, r" is listed but missing"),
    "broken off": (".jpg", broken_off, r" cannot be read \(.*[Tt]runcated"),
    "no image": (".jpg", lambda p: p.write_text("404 not found"), r" cannot be read \(cannot identify"),
    "empty": (".png", lambda p: p.write_bytes(b""), r" cannot be read"),
    "another size": (".png", lambda p: Image.open(p).resize((50, 50), 0).save(p), r" is 50 × 50 pixels, its image 100"),
    "colours": (".png", lambda p: Image.open(p).convert("RGB").save(p), r" is a RGB image: a mask holds labels"),
    "labels": (".png", lambda p: Image.new("L", (100, 130), 21).save(p), r" contains the label 21"),
}


def breaks(datasets, name, kind):
    suffix, change, _ = KINDS[kind]
    change(datasets / "pascal" / {".jpg": "JPEGImages", ".png": "SegmentationClassAug"}[suffix] / f"{name}{suffix}")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_bad_file_is_named(datasets, kind):
    breaks(datasets, "2007_000000", kind)
    message = f"2007_000000{KINDS[kind][0]}{KINDS[kind][2]}"
    benchmark = load_benchmark("pascal", size=64)
    with pytest.raises(FileNotFoundError if kind == "missing" else UnreadableFileError, match=message):
        benchmark.read_square("2007_000000", 0, 64)
    (flaw,) = benchmark.flaws("2007_000000", 64)
    assert re.search(message, flaw)
    assert benchmark.flaws("2007_000001", 64) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_stops_at_a_bad_file_and_says_the_next_step(datasets, workers):
    benchmark = load_benchmark("pascal", size=64)
    episodes = test_episodes(benchmark, fold=0, shot=1, count=10)
    breaks(datasets, episodes[3].query, "broken off")
    message = rf"^\S+{episodes[3].query}.jpg cannot be read \(.*\): replace it. `python -m hsnet.prepare pascal"
    with pytest.raises(UnreadableFileError, match=message):
        list(EpisodeDataset(benchmark, 64, episodes).loader(2, workers))
    training = EpisodeDataset(benchmark, 64, fold=0, count=60)
    breaks(datasets, training.episode(7).query, "missing")
    with pytest.raises(UnreadableFileError, match=training.episode(7).query):
        list(training.loader(2, workers))


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
    (folder / "images.uint8").open("ab").write(b"more")
    with pytest.raises(ValueError, match=r"images.uint8 no longer has its .* bytes: delete that folder"):
        load_benchmark(name, size=48)


def test_an_episode_from_the_cache_is_the_same_batch(datasets):
    build_cache(load_benchmark("pascal", size=48), 48)
    transfer = load_benchmark("coco-to-pascal", size=48)  # shares it
    assert transfer.pairs(0, "test")[0][0] in transfer.cache
    plain, cached = load_benchmark("pascal", size=48), load_benchmark("pascal", size=48)
    plain.cache = None
    breaks(datasets, "2007_000101", "empty")
    assert [len(load_benchmark("pascal", size=size).flaws("2007_000101", size)) for size in (48, 32)] == [0, 1]
    with pytest.raises(UnreadableFileError, match=r"2007_000101\.png cannot be read"):
        build_cache(load_benchmark("pascal", size=32), 32)
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
    with pytest.raises(ValueError, match="shapes needs no cache"):
        build_cache(load_benchmark("shapes", size=32), 32)


def test_data_sets_that_are_incomplete(datasets, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder /nowhere for pascal: give it with --root; `python -m"):
        load_benchmark("pascal", size=64, root="/nowhere").check(0, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"(\d+) of the \1 .* of coco-to-pascal's.*prepare pascal --check"):
        load_benchmark("coco-to-pascal", size=64, root=str(tmp_path / "empty")).check(3, "train")
    breaks(datasets, "2007_000000", "missing")
    benchmark = load_benchmark("pascal", size=64)
    with pytest.raises(
        FileNotFoundError, match=r"1 of the .*pascal's train .*2007_000000.jpg: is a download incomplete\?"
    ):
        benchmark.check(1, "train")


def test_labels_are_resized_as_masks_are():
    rng = np.random.default_rng(0)
    for size in ((333, 500), (375, 17), (31, 640)):
        labels = rng.integers(0, 21, size, dtype=np.uint8)
        square = resize_labels(labels, 400)
        # The reference's own operation, on floats.
        mask = torch.from_numpy(labels == 7).float()[None, None]
        expected = torch.nn.functional.interpolate(mask, (400, 400), mode="nearest")[0, 0] > 0
        assert torch.equal(square == 7, expected)
        assert torch.equal(resize_mask(labels == 7, 400), expected)
    assert resize_image(np.zeros((30, 20, 3), np.uint8), 10).shape == (3, 10, 10)


def test_fss_is_tested_with_its_published_flaw(tmp_path, monkeypatch):
    """A mask of 960 × 480, RGB, beside a picture of another size; it is resized to the square, as the authors do."""
    root, splits = tmp_path / "fss", tmp_path / "splits"
    DATASETS["fss"](root, splits, ("ab_wheel", "bus", "peregine_falcon"))
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


@pytest.mark.parametrize(("name", "split", "what"), [("pascal", "val", "validation"), ("fss", "test", "test")])
def test_bad_files_are_named_before_the_first_step(datasets, data, name, split, what):
    small = {"benchmark": name, "epochs": 1, "epoch_episodes": 2, "val_episodes": 20, "test_episodes": 20, "shot": "1"}
    config = Config(**TINY | small)
    benchmark = config.load_benchmark()
    episodes = test_episodes(benchmark, fold=0, shot=1, count=20, split=split)
    bad = [benchmark.image_path(episodes[3].query), benchmark.mask_path(episodes[12].supports[0])]
    for path in bad:
        path.write_bytes(path.read_bytes()[: 3 * path.stat().st_size // 4])  # the header is sound
    with pytest.raises(UnreadableFileError, match=f"^2 of the {what} files cannot be used.*same command") as error:
        Learner(config)
    assert sorted(line.split()[0] for line in str(error.value).splitlines()[1:]) == sorted(map(str, bad))
