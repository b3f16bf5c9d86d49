"""PASCAL-5i, COCO-20i and FSS-1000: official and strict episodes, masks, caches, bad files. Trees are drawn by the tests.

The authors' own episodes are compared where their lists are at hand: set HSNET_SPLITS.
"""

import gzip
import json
import os
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from drawn_datasets import DATASETS
from helpers import assert_close, reference_model
from kit.golden import FOLDER, golden, golden_input
from PIL import Image

from hsnet import Batch, Config, EpisodeDataset, SegmentationScore, paper, test_episodes
from hsnet.backbone import Backbone
from hsnet.baselines import any_object
from hsnet.benchmarks import UnreadableFileError, benchmark_of, coco, listed, load_benchmark, pascal
from hsnet.benchmarks import cache as caching
from hsnet.benchmarks.cache import Cache, build_cache
from hsnet.benchmarks.splits import read_coco, read_fss, read_pascal
from hsnet.config import TEST_LISTS
from hsnet.devices import choose_precision
from hsnet.engine import Learner, evaluate, pixel_loss, pixel_weight, predictor
from hsnet.episodes import load_episode, require_readable, resize_image, shard, test_lists
from hsnet.model import VOTE_RULES
from hsnet.paths import images_folder
from hsnet.train import train

OFFICIAL_LISTS = os.environ.get("HSNET_SPLITS")
needs_lists = pytest.mark.skipif(
    not OFFICIAL_LISTS,
    reason="the official split lists are not shipped: `python -m hsnet.prepare splits`, set HSNET_SPLITS",
)


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The official lists without any image; COCO is asked for with masks."""
    monkeypatch.setenv("HSNET_SPLITS", OFFICIAL_LISTS)
    monkeypatch.setenv("HSNET_IMAGES", str(tmp_path))
    (tmp_path / "coco" / "masks" / "val2014").mkdir(parents=True)


def names(episode):
    return [episode.query, *episode.supports]


# The authors' numbers


def golden_lists():
    files = ("episodes.json.gz", "episodes_fss.json.gz")
    return {k: v for file in files for k, v in json.loads(gzip.decompress((FOLDER / file).read_bytes())).items()}


@needs_lists
@pytest.mark.parametrize("case", sorted(golden_lists()))
def test_official_episodes_are_the_authors(official, case):
    """Every fold and shot, from the lists alone: no pixel is read, there is no image."""
    benchmark, fold, shot = re.fullmatch(r"(\w+?)(?:-fold(\d))?-(\d)shot", case).groups()
    theirs = golden_lists()[case]
    ours = test_episodes(load_benchmark(benchmark, size=400), fold=int(fold or 0), shot=int(shot), count=len(theirs))
    assert [[e.query, e.class_id, *e.supports] for e in ours] == theirs


@needs_lists
def test_an_epoch_is_as_long_as_the_papers(official):
    iterations = {
        name: [
            -(-load_benchmark(name, size=400).training_queries(fold) // paper(name).batch)
            for fold in range(load_benchmark(name, size=400).folds)
        ]
        for name in ("pascal", "coco", "fss")
    }
    assert iterations == {"pascal": [570, 513, 390, 580], "coco": [1551, 1860, 1826, 1846], "fss": [260]}


@needs_lists
def test_five_shot_supports_repeat_officially_and_never_strictly(official):
    def repeats(name, fold, protocol):
        episodes = test_episodes(load_benchmark(name, size=400), fold=fold, shot=5, protocol=protocol)
        return sum(len(set(e.supports)) < 5 for e in episodes)

    assert [repeats("pascal", fold, "official") for fold in range(4)] == [133, 112, 53, 133]
    for name, folds in (("pascal", 4), ("coco", 4), ("fss", 1)):
        assert sum(repeats(name, fold, "strict") for fold in range(folds)) == 0


@needs_lists
def test_how_many_pairs_show_novel_classes(official):
    keep, drop = (load_benchmark("pascal", size=400, novel_images=option) for option in ("keep", "drop"))
    share = [1 - drop.training_queries(f) / keep.training_queries(f) for f in range(4)]
    assert [round(100 * s) for s in share] == [7, 17, 29, 10]


def test_preprocessing():
    file = golden("preprocess.npz")
    size, class_id = int(file["size"]), int(file["class_id"])
    benchmark = load_benchmark("pascal", size=size)
    benchmark.picture = lambda name: (Image.fromarray(file["image"]), file["label"])
    square = benchmark.read_square("any", class_id, size)
    normal = Backbone("resnet50", pretrained=False).normalize(square.image[None])[0]
    assert_close(normal[:, ::4, ::4], file["query_img"], 1e-5)
    np.testing.assert_array_equal(square.mask.numpy(), file["query_mask"] > 0)
    np.testing.assert_array_equal(square.mask.numpy(), file["support_mask"] > 0)
    np.testing.assert_array_equal(square.ignored.numpy(), file["query_ignore_idx"] > 0)


@pytest.fixture
def golden_tree(tmp_path, monkeypatch):
    """The tree of twelve drawn images from which the authors' code made end_to_end.json."""
    file = golden("end_to_end.json")
    root, splits = tmp_path / "golden", tmp_path / "splits"
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(file["names"]):
        size = (240, 320) if i % 2 else (300, 225)
        image = torch.nn.functional.interpolate(
            golden_input(f"image.{i}", (1, 3, 8, 8)), size, mode="bilinear", align_corners=False
        )
        pixels = (image[0] * 60 + 128).clamp(0, 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", format="PNG")
        field = golden_input(f"label.{i}", (1, 1, 6, 6)).repeat_interleave(40, 2).repeat_interleave(40, 3)
        field = torch.nn.functional.interpolate(field, size, mode="nearest")[0, 0].numpy()
        labels = np.select([field > 1.5, field > 0.4, field < -1], [255, i % 5 + 1, (i + 2) % 5 + 1], 0)
        Image.fromarray(labels.astype(np.uint8)).save(root / "SegmentationClassAug" / f"{name}.png")
    for part in ("trn", "val"):
        (splits / "pascal" / part).mkdir(parents=True)
        for fold in range(4):
            lines = file["split"] if fold == file["fold"] else []
            (splits / "pascal" / part / f"fold{fold}.txt").write_text("".join(line + "\n" for line in lines))
    monkeypatch.setenv("HSNET_SPLITS", str(splits))
    return root


def golden_model():
    model = reference_model("resnet50").eval()
    bias = model.decoder.after[2].bias
    with torch.no_grad():
        bias[1] += golden("end_to_end.json")["foreground_bias_raised_by"]
    return model


@pytest.mark.parametrize("shot", [1, 5])
def test_from_files_to_miou(golden_tree, shot):
    file = golden("end_to_end.json")
    benchmark = load_benchmark("pascal", size=file["size"], root=str(golden_tree))
    episodes = test_episodes(benchmark, fold=file["fold"], shot=shot, count=file["episodes"])
    score = evaluate(
        predictor(golden_model(), torch.device("cpu")),
        EpisodeDataset(benchmark, file["size"], episodes),
        benchmark.classes(file["fold"], "test"),
        batch=2,
        workers=0,
        title="golden",
    )["HSNet"]
    theirs = file[f"{shot}-shot"]
    assert [[e.query, e.class_id] for e in episodes] == [row[:2] for row in theirs["rows"]]
    ours = np.array([row[1:] for row in score.rows])
    difference = np.abs(ours - np.array([row[2:] for row in theirs["rows"]])).max() / file["size"] ** 2
    print(f"largest difference of an area: {difference:.1e} of the pixels")
    assert difference <= 1e-3
    assert score.miou() == pytest.approx(theirs["miou"], abs=0.05)
    assert score.fb_iou() == pytest.approx(theirs["fb_iou"], abs=0.05)


# Protocols


@pytest.mark.parametrize("name", ["pascal", "coco"])
def test_strict_keeps_the_highest_classes_of_each_training_fold_back(trees, name):
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


def test_strict_asks_five_lists_with_distinct_supports(trees):
    for name in DATASETS:
        benchmark = load_benchmark(name, size=64, protocol="strict")
        lists = test_lists(benchmark, fold=0, shot=4, count=60)
        assert len(lists) == TEST_LISTS["strict"] == 5
        assert all(a != b for a, b in pairwise(lists))
        assert all(len({*names(e)}) == 5 for episodes in lists for e in episodes)
        official = test_lists(benchmark.under("official"), fold=0, shot=4, count=60)
        assert len(official) == 1
        assert any(len(set(e.supports)) < 4 for e in official[0])
        assert benchmark.digest() != benchmark.under("official").digest()  # never in one table


def test_strict_needs_enough_images(trees):
    with pytest.raises(
        ValueError, match=r"fss, fold 0, test: class 2 \(bus\) has 10 images, an episode of 10 supports needs 11"
    ):
        test_episodes(load_benchmark("fss", size=64), fold=0, shot=10, protocol="strict")
    assert len(test_episodes(load_benchmark("fss", size=64), fold=0, shot=10, count=3)) == 3
    with pytest.raises(ValueError, match="protocol is 'strict': shapes has official"):
        load_benchmark("shapes", size=64, protocol="strict")


def test_a_class_without_images(trees):
    path = trees / "splits" / "pascal" / "val" / "fold1.txt"
    path.write_text("".join(line for line in path.open() if not line.endswith("__07\n")))
    with pytest.raises(ValueError, match=r"pascal, fold 1, test: class 6 \(car\) has 0 images, .*prepare splits"):
        test_episodes(load_benchmark("pascal", size=64), fold=1, shot=1)


def test_dropping_that_leaves_nothing(trees):
    path = trees / "splits" / "pascal" / "trn" / "fold0.txt"
    every = {line.split("__")[0] for fold in range(4) for line in (path.parent / f"fold{fold}.txt").open()}
    path.write_text("".join(f"{name}__01\n" for name in sorted(every)))
    with pytest.raises(
        ValueError, match=r"pascal, fold 0, train: class 5 \(bus\) has 0 images.*take --novel-images keep"
    ):
        load_benchmark("pascal", size=64, novel_images="drop").check(0, "train")


def test_shards_hold_every_episode_once(trees):
    episodes = test_episodes(load_benchmark("pascal", size=64), fold=0, shot=1, count=21)
    for world in (1, 2, 4, 32):
        parts = [shard(episodes, rank, world) for rank in range(world)]
        assert sum(map(len, parts)) == 21
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(parts[i % world][i // world] == e for i, e in enumerate(episodes))
    with pytest.raises(ValueError, match="rank is 2 of a world of 2"):
        shard(episodes, 2, 2)


def test_an_epoch_asks_for_each_query_once(trees):
    for name in ("pascal", "fss"):
        benchmark = load_benchmark(name, size=64)
        dataset = EpisodeDataset(benchmark, 64, fold=0, count=benchmark.training_queries(0))
        first = [dataset.episode(i) for i in range(len(dataset))]
        assert sorted((e.query, e.class_id) for e in first) == sorted(benchmark.pairs(0, "train"))
        assert all(
            e.query not in e.supports and e.supports[0] in benchmark.images(0, "train")[e.class_id] for e in first
        )
        dataset.epoch = 1
        assert [dataset.episode(i) for i in range(len(dataset))] != first


def test_coco_draws_the_class_first(trees):
    benchmark = load_benchmark("coco", size=64)
    assert benchmark.training_queries(0) == 240 == len({n for n, _ in benchmark.pairs(0, "train")})
    drawn = [benchmark.draw(np.random.default_rng(i), 0) for i in range(300)]
    counts = np.bincount([e.class_id for e in drawn], minlength=80)
    assert counts.reshape(20, 4)[:, 0].sum() == 0
    assert 45 <= (counts > 0).sum() <= 60
    assert all(e.query in benchmark.images(0, "train")[e.class_id] for e in drawn)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_the_same_for_any_number_of_workers(trees, workers):
    dataset = EpisodeDataset(load_benchmark("pascal", size=64), 64, fold=1, count=7)
    one = Batch.stack([dataset[i] for i in range(7)])
    many = Batch.stack([*dataset.loader(3, workers)])
    assert all(torch.equal(getattr(one, n), getattr(many, n)) for n in ("query", "query_mask", "support", "class_id"))


@pytest.mark.parametrize("name", ["pascal", "coco"])
@pytest.mark.parametrize("protocol", ["official", "strict"])
def test_dropping_images_that_show_novel_classes(trees, name, protocol):
    keep, drop = (load_benchmark(name, size=64, novel_images=option, protocol=protocol) for option in ("keep", "drop"))
    for fold in range(4):
        trained = {c + 1 for c in drop.classes(fold, "train")}
        for image, _ in drop.pairs(fold, "train"):
            assert set(np.unique(drop.picture(image)[1])) - {0, 255} <= trained
        assert 0 < len(drop.pairs(fold, "train")) < len(keep.pairs(fold, "train"))
        assert drop.pairs(fold, "test") == keep.pairs(fold, "test")


def test_coco_to_pascal_asks_for_no_class_of_its_model():
    for c, coco_id in enumerate(pascal.COCO_IDS):
        same = {"aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "sofa": "couch"}
        same |= {"pottedplant": "potted plant", "tvmonitor": "tv"}
        assert coco.CLASSES[coco_id] == same.get(pascal.CLASSES[c], pascal.CLASSES[c])


def test_coco_to_pascal_folds(trees):
    transfer, source = load_benchmark("coco-to-pascal", size=64), load_benchmark("coco", size=64)
    folds = [transfer.classes(fold, "test") for fold in range(4)]
    assert [len(f) for f in folds] == [6, 4, 6, 4]
    assert sorted(c for classes in folds for c in classes) == list(range(20))
    for fold, classes in enumerate(folds):
        trained = source.classes(fold, "train")
        assert not {pascal.COCO_IDS[c] for c in classes} & set(trained)
        episodes = test_episodes(transfer, fold=fold, shot=1, count=200)
        assert {e.class_id for e in episodes} == set(classes)
        assert {n for e in episodes for n in names(e)} <= {
            n for n, _ in load_benchmark("pascal", size=64).listed("val")
        }
    assert transfer.source()["episodes"] == "ours"
    assert transfer.root == images_folder("pascal")


@needs_lists
def test_coco_to_pascal_asks_for_every_validation_image(official):
    transfer = load_benchmark("coco-to-pascal", size=400)
    for fold in range(4):
        episodes = test_episodes(transfer, fold=fold, shot=1)
        assert {(e.query, e.class_id) for e in episodes} == set(transfer.pairs(fold, "test"))


# Masks


def test_pascal_masks_with_palette_or_grey(trees):
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


def test_fss_masks_of_any_mode(trees):
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
    Image.open(trees / "fss/bus/1.png").convert("RGB").quantize(2).save(trees / "fss/bus/2.png")
    np.testing.assert_array_equal(benchmark.read("bus/2.jpg", 2).mask, benchmark.read("bus/1.jpg", 2).mask)


def test_coco_reads_the_masks_that_were_prepared(trees):
    benchmark = load_benchmark("coco", size=64)
    assert isinstance(benchmark, coco.Coco)
    name = benchmark.listed("val")[0][0]
    assert name == "val2014/COCO_val2014_000000000003.jpg"
    sample = benchmark.read(name, 0)
    assert sample.mask[5:25, 3:16].all()
    assert sample.mask.sum() == 20 * 13
    assert sample.objects.sum() == 2 * 20 * 13
    assert benchmark.source() == {"lists": "official", "source": "ours", "crowd": True}
    before = benchmark.digest()
    (trees / "coco" / "masks" / "source.json").write_text('{"source": "authors"}')
    assert load_benchmark("coco", size=64).digest() != before
    (trees / "coco" / "masks" / "source.json").write_text("{")
    with pytest.raises(ValueError, match=r"source.json is damaged .*prepare coco"):
        benchmark.source()


def test_the_query_can_be_scored_at_its_own_size(trees):
    benchmark = load_benchmark("pascal", size=64)
    episode = test_episodes(benchmark, fold=0, shot=2, count=1)[0]
    batch = load_episode(benchmark, episode, 64, original_size=True)
    sample = benchmark.read(episode.query, episode.class_id)
    assert batch.query.shape == (1, 3, 64, 64)
    assert batch.support_mask.shape == (1, 2, 64, 64)
    for ours, theirs in ((batch.query_mask, sample.mask), (batch.ignored, sample.ignored)):
        np.testing.assert_array_equal(ours[0].numpy(), theirs)
    dataset = EpisodeDataset(benchmark, 64, test_episodes(benchmark, fold=0, shot=1, count=4), original_size=True)
    scores = evaluate(
        lambda b: {"objects": any_object(b)}, dataset, benchmark.classes(0, "test"), batch=3, workers=0, title=""
    )
    areas = [benchmark.read(e.query, e.class_id).mask.sum() for e in dataset.episodes]
    assert [
        row[2] for row in scores["objects"].rows
    ] == areas  # intersections of the foreground, in the image's own pixels


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


# Cache


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_cached_pixels_are_those_of_the_files(trees, name):
    plain = load_benchmark(name, size=48)
    folder = build_cache(plain, 48)
    assert folder == trees / name / "cache-48"
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
    (trees / name / "cache-48" / "images.uint8").open("ab").write(b"more")
    with pytest.raises(ValueError, match=r"images.uint8 has not the .* bytes .* delete that folder"):
        load_benchmark(name, size=48)


def test_an_episode_from_the_cache_is_the_same_batch(trees):
    build_cache(load_benchmark("pascal", size=48), 48)
    plain, cached = load_benchmark("pascal", size=48), load_benchmark("pascal", size=48)
    plain.cache = None
    shutil.rmtree(trees / "pascal" / "JPEGImages")  # nothing of it is opened
    episodes = test_episodes(cached, fold=2, shot=2, count=5)
    assert all(len(b.class_id) for b in EpisodeDataset(cached, 48, episodes).loader(2, workers=2))
    with pytest.raises(FileNotFoundError):
        EpisodeDataset(plain, 48, episodes)[0]


def test_coco_to_pascal_shares_the_cache(trees):
    build_cache(load_benchmark("pascal", size=48), 48)
    transfer = load_benchmark("coco-to-pascal", size=48)
    assert transfer.pairs(0, "test")[0][0] in transfer.cache


def test_a_cache_that_was_cut_off_goes_on(trees, monkeypatch):
    benchmark = load_benchmark("fss", size=32)
    read, calls = benchmark.read_labelled_square, []

    def cut_off(name, size):
        calls.append(name)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return read(name, size)

    monkeypatch.setattr(benchmark, "read_labelled_square", cut_off)
    with pytest.raises(KeyboardInterrupt):
        build_cache(benchmark, 32, threads=1)
    growing = trees / "fss" / "cache-32.tmp"
    assert growing.exists()
    assert not (trees / "fss" / "cache-32").exists()  # what is not whole has not the name
    assert load_benchmark("fss", size=32).cache is None
    done = (growing / "labels.uint8").stat().st_size // 32**2
    (growing / "labels.uint8").open("ab").write(b"half an image")
    monkeypatch.setattr(benchmark, "read_labelled_square", lambda name, size: (calls.append(name), read(name, size))[1])
    calls.clear()
    folder = build_cache(benchmark, 32, threads=1)
    assert done > 0
    assert calls == benchmark.names()[done:]
    whole = load_benchmark("fss", size=32)
    for name in benchmark.names():
        assert torch.equal(whole.read_square(name, 0, 32).image, benchmark.read_square(name, 0, 32).image)
    assert build_cache(benchmark, 32) == folder  # is there


def test_a_cache_leaves_out_what_cannot_be_read(trees, capsys):
    broken = trees / "fss" / "bus" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    build_cache(load_benchmark("fss", size=32), 32)
    assert f"left out: {broken} cannot be read" in capsys.readouterr().out
    benchmark = load_benchmark("fss", size=32)
    assert "bus/3.jpg" not in benchmark.cache
    assert "bus/4.jpg" in benchmark.cache
    with pytest.raises(UnreadableFileError, match=r"3.jpg cannot be read"):
        benchmark.read_square("bus/3.jpg", 2, 32)


def test_a_cache_without_space(trees, monkeypatch):
    monkeypatch.setattr(
        caching.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 5000, 5000)
    )
    with pytest.raises(
        OSError, match=r"a cache at 400 px needs 0.0 GB more in .*fss, 0.0 GB are free: free space, or move"
    ):
        build_cache(load_benchmark("fss", size=400), 400)


def test_a_disk_that_fills_up_while_the_cache_grows(trees, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, content):
            raise OSError(28, "No space left on device")

    opened = caching.Path.open
    monkeypatch.setattr(caching.Path, "open", lambda p, mode="r", **k: Full() if mode == "ab" else opened(p, mode, **k))
    with pytest.raises(
        OSError, match=r"cache-32.tmp cannot grow \(No space left on device\): free space and run the same"
    ):
        build_cache(load_benchmark("fss", size=32), 32)


def test_a_cache_of_other_masks(trees):
    build_cache(load_benchmark("coco", size=32), 32)
    (trees / "coco" / "masks" / "source.json").write_text('{"source": "authors", "crowd": true}')
    with pytest.raises(ValueError, match=r"cache-32 was built from other masks, .*ours.*now, .*authors.*--cache 32"):
        load_benchmark("coco", size=32)


def test_no_cache_of_what_has_no_maps_of_labels():
    with pytest.raises(ValueError, match="shapes has no maps of labels to keep"):
        build_cache(load_benchmark("shapes", size=32), 32)


def test_a_cache_travels_to_another_process_as_a_name(trees):
    import pickle

    build_cache(load_benchmark("fss", size=32), 32)
    cache = Cache.of(load_benchmark("fss", size=32), 32)
    image, labels = cache.read("bus/1.jpg")
    sent = pickle.dumps(cache)
    assert len(sent) < 10_000
    again = pickle.loads(sent).read("bus/1.jpg")
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], labels)


# Files that are missing, broken, or not what they should be


def breaks(trees, name, kind):
    image = trees / "pascal" / "JPEGImages" / f"{name}.jpg"
    mask = trees / "pascal" / "SegmentationClassAug" / f"{name}.png"
    if kind == "missing":
        image.unlink()
    elif kind == "broken off":
        image.write_bytes(image.read_bytes()[:400])
    elif kind == "no image":
        image.write_text("404 not found")
    elif kind == "empty":
        mask.write_bytes(b"")
    elif kind == "another size":
        Image.open(mask).resize((50, 50), Image.Resampling.NEAREST).save(mask)
    elif kind == "colours":
        Image.open(mask).convert("RGB").save(mask)
    elif kind == "labels":
        Image.fromarray(np.full((130, 100), 21, np.uint8)).save(mask)


KINDS = {
    "missing": (FileNotFoundError, r"2007_000000.jpg is listed but not there"),
    "broken off": (UnreadableFileError, r"2007_000000.jpg cannot be read \(.*[Tt]runcated"),
    "no image": (UnreadableFileError, r"2007_000000.jpg cannot be read \(cannot identify"),
    "empty": (UnreadableFileError, r"2007_000000.png cannot be read"),
    "another size": (UnreadableFileError, r"2007_000000.png is 50 × 50 pixels, its image 100 × 130"),
    "colours": (UnreadableFileError, r"2007_000000.png is a RGB image: a mask holds labels"),
    "labels": (UnreadableFileError, r"2007_000000.png holds the label 21: pascal has 1 to 20"),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_bad_file_is_named(trees, kind):
    breaks(trees, "2007_000000", kind)
    error, message = KINDS[kind]
    with pytest.raises(error, match=message):
        load_benchmark("pascal", size=64).read_square("2007_000000", 0, 64)


def test_training_passes_bad_files_over(trees, capsys):
    benchmark = load_benchmark("pascal", size=64)
    whole = EpisodeDataset(benchmark, 64, fold=0, count=60)
    expected = [whole[i] for i in range(60)]
    bad = {"2007_000006": "broken off", "2007_000011": "missing", "2007_000028": "another size"}
    for name, kind in bad.items():
        breaks(trees, name, kind)
    batches = {}
    for workers in (0, 2):
        dataset = EpisodeDataset(benchmark, 64, fold=0, count=60, bad_files=3)
        batches[workers] = Batch.stack([*dataset.loader(4, workers)])
        assert len(dataset.passed_over) == 3
        out = capsys.readouterr().out
        assert all(out.count(f"{name}.") == 1 for name in bad), out  # each named once
    ours = batches[0]
    assert torch.equal(ours.query, batches[2].query)  # the same replacements in any process
    replaced = [bool({*names(whole.episode(i))} & set(bad)) for i in range(60)]
    assert any(replaced)
    same = [torch.equal(ours.query[i : i + 1], expected[i].query) for i in range(60)]
    assert all(s for s, r in zip(same, replaced, strict=True) if not r)
    dataset = EpisodeDataset(benchmark, 64, fold=0, count=60, bad_files=2)
    with pytest.raises(UnreadableFileError, match=r"3 training files cannot be used, 2 are passed over") as error:
        list(dataset.loader(4))
    assert all(name in str(error.value) for name in bad)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_test_does_not_pass_bad_files_over(trees, workers):
    benchmark = load_benchmark("pascal", size=64)
    episodes = test_episodes(benchmark, fold=0, shot=1, count=10)
    breaks(trees, episodes[3].query, "broken off")
    with pytest.raises(
        UnreadableFileError, match=rf"^\S+{episodes[3].query}.jpg cannot be read \(.*\): fetch it again$"
    ):
        list(EpisodeDataset(benchmark, 64, episodes, bad_files=20).loader(2, workers))


SMALL = {
    "benchmark": "pascal",
    "backbone": "efficientnet_lite0",
    "size": 64,
    "batch": 2,
    "epochs": 1,
    "epoch_episodes": 2,
    "val_episodes": 20,
    "test_episodes": 2,
    "shot": "1",
    "workers": 0,
    "device": "cpu",
    "precision": "float32",
    "name": "bad",
}


def test_bad_files_of_validation_are_all_named_before_the_first_step(trees, data, monkeypatch):
    config = Config(**SMALL)
    episodes = test_episodes(benchmark_of(config), fold=0, shot=1, count=20, split="val")
    image = trees / "pascal" / "JPEGImages" / f"{episodes[3].query}.jpg"
    mask = trees / "pascal" / "SegmentationClassAug" / f"{episodes[12].supports[0]}.png"
    whole = {path: path.read_bytes() for path in (image, mask)}
    for path, content in whole.items():
        path.write_bytes(content[: 3 * len(content) // 4])
    Image.open(image)  # its header is whole, which tells nothing
    steps, log = [], Learner.log
    monkeypatch.setattr(Learner, "log", lambda *a: (steps.append(1), log(*a))[1])
    with pytest.raises(
        UnreadableFileError, match=r"^2 of the files that validation needs.*prepare pascal --check.*same command"
    ) as error:
        train(config)
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == sorted(map(str, whole))
    assert not steps
    for path, content in whole.items():
        path.write_bytes(content)
    train(config)
    assert steps


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_kinds_of_bad_files_are_found(trees, kind):
    breaks(trees, "2007_000000", kind)
    benchmark = load_benchmark("pascal", size=64)
    (flaw,) = benchmark.flaws("2007_000000", 64)
    assert re.search(KINDS[kind][1], flaw)
    assert benchmark.flaws("2007_000001", 64) == []


def test_an_image_and_its_mask_are_both_named(trees):
    breaks(trees, "2007_000000", "broken off")
    breaks(trees, "2007_000000", "empty")
    found = load_benchmark("pascal", size=64).flaws("2007_000000", 64)
    assert [("jpg cannot be read" in flaw, "png cannot be read" in flaw) for flaw in found] == [(1, 0), (0, 1)]


def test_what_a_cache_holds_is_not_read(trees, monkeypatch):
    folder = trees / "pascal" / "SegmentationClassAug"
    episodes = test_episodes(load_benchmark("pascal", size=32), fold=0, shot=1, count=20)
    left_out, broken = episodes[0].query, episodes[1].query
    (folder / f"{left_out}.png").write_bytes(b"")
    build_cache(load_benchmark("pascal", size=32), 32)
    (folder / f"{broken}.png").write_bytes(b"")
    opened, look = [], listed.open_image
    monkeypatch.setattr(listed, "open_image", lambda path: (opened.append(path), look(path))[1])
    dataset = EpisodeDataset(load_benchmark("pascal", size=32), 32, episodes)
    with pytest.raises(UnreadableFileError, match=rf"^1 of the files[^\n]*\n  \S+{left_out}.png cannot be read"):
        require_readable(dataset)
    assert {path.stem for path in opened} == {left_out}  # only what the cache lacks
    other_size = EpisodeDataset(load_benchmark("pascal", size=48), 48, episodes)
    with pytest.raises(UnreadableFileError, match=r"^2 of the files"):
        require_readable(other_size, threads=2)


def test_trees_that_are_not_whole(trees, tmp_path):
    for name in (*DATASETS, "coco-to-pascal"):
        for split in ("train", "val", "test"):
            load_benchmark(name, size=64).check(0, split)
    with pytest.raises(
        FileNotFoundError, match=r"no folder /nowhere for pascal: name it with --root, or `python -m hsnet.prep"
    ):
        load_benchmark("pascal", size=64, root="/nowhere").check(0, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"(\d+) of the \1 images and masks of coco-to-pascal's.*prepare pascal --check"
    ):
        load_benchmark("coco-to-pascal", size=64, root=str(tmp_path / "empty")).check(3, "train")
    breaks(trees, "2007_000000", "missing")
    benchmark = load_benchmark("pascal", size=64)
    with pytest.raises(
        FileNotFoundError, match=r"1 of the .*pascal's train episodes.*2007_000000.jpg: half a download\?"
    ):
        benchmark.check(1, "train")
    benchmark.check(1, "train", tolerated=1)
    (trees / "coco" / "masks" / "source.json").unlink()
    shutil.rmtree(trees / "coco" / "masks")
    with pytest.raises(FileNotFoundError, match=r"no annotations/instances_train\*.json .*prepare coco"):
        load_benchmark("coco", size=64)


def test_lists_that_are_wrong(trees):
    splits = trees / "splits"
    (splits / "pascal/val/fold0.txt").write_text("2007_000100__01\n2007_000101__21\n")
    with pytest.raises(
        ValueError, match=r"fold0.txt, line 2: class 21 does not exist, they are 1 to 20.*prepare splits"
    ):
        read_pascal("val", 0)
    (splits / "pascal/val/fold0.txt").write_text("<html>\n")
    with pytest.raises(ValueError, match=r"fold0.txt, line 1: '<html>' is not IMAGE__CLASS"):
        read_pascal("val", 0)
    (splits / "coco/val.json").write_text(json.dumps({str(c): [1, 2] for c in range(81)}))
    with pytest.raises(ValueError, match=r"val.json lists classes that do not exist, \[80\]: there are 0 to 79"):
        read_coco("val")
    (splits / "coco/val.json").write_text(json.dumps({str(c): [1, 2] for c in range(79)}))
    with pytest.raises(ValueError, match=r"val.json has no list for the classes \[79\]"):
        read_coco("val")
    (splits / "coco/val.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"val.json is damaged"):
        read_coco("val")
    (splits / "coco/val.json").unlink()
    (splits / "coco/val.json.gz").write_bytes(gzip.compress(b'{"0": [1]}')[:15])
    with pytest.raises(ValueError, match=r"val.json.gz is damaged"):
        read_coco("val")
    (splits / "fss/test.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no list .*test.txt: fetch .*hsnet.prepare splits`, or set HSNET_SPLITS"
    ):
        read_fss("test")


# Settings


def test_the_setting_behind_a_cell():
    config = paper("pascal", "resnet101", 3)
    assert (config.epochs, config.patience, config.precision, config.batch) == (2000, 100, "float32", 20)
    assert (config.protocol, config.novel_images, config.boundary, config.rule) == (
        "official",
        "keep",
        "background",
        "paper",
    )
    assert (config.optimizer, config.learning_rate, config.schedule, config.size) == ("adam", 1e-3, "constant", 400)
    assert (config.val_episodes, config.test_episodes, config.epoch_episodes) == (1000, 1000, 0)
    assert paper("coco").batch == 40
    assert paper("fss").test_episodes == paper("fss").val_episodes == 2400
    assert paper("pascal").run != Config(**{**vars(paper("pascal")), "protocol": "strict"}).run


def test_float32_is_not_rounded_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    cpu = torch.device("cpu")
    choose_precision("auto", cpu)
    assert torch.backends.cudnn.allow_tf32
    assert choose_precision(paper("pascal").precision, cpu) == torch.float32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_settings_reach_the_benchmark(trees):
    config = Config(**{**vars(paper("pascal")), "protocol": "strict", "novel_images": "drop"})
    benchmark = benchmark_of(config)
    assert (benchmark.protocol, benchmark.novel_images) == ("strict", "drop")
    with pytest.raises(ValueError, match="protocol is 'mine': choose one of official, strict"):
        Config(protocol="mine")
    with pytest.raises(ValueError, match="fold is 1: fss has one split only, --fold 0"):
        load_benchmark("fss", size=64).classes(1, "test")
    from dataclasses import fields

    assert next(f for f in fields(Config) if f.name == "rule").metadata["choices"] == VOTE_RULES


def test_labels_are_squashed_as_masks_are():
    from hsnet.benchmarks.resize import resize_labels, resize_mask

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
    assert SegmentationScore([1]).absent() == [1]
