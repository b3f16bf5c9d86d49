"""A data set of one's own in its three layouts: what is read, how classes are dealt, what is refused."""

import json

import numpy as np
import pytest
import torch
from drawn_datasets import folder as draw_folder
from drawn_datasets import picture
from PIL import Image

from hsnet import EpisodeDataset, HSNet, Segmenter, test_episodes
from hsnet.benchmarks import Square, UnreadableFileError, load_benchmark
from hsnet.benchmarks.augment import AUGMENTATIONS, KEPT, augment
from hsnet.benchmarks.cache import build_cache
from hsnet.config import Config
from hsnet.runs import save_model
from hsnet.thresholds import ENLARGED, PRIORS, THRESHOLDS


@pytest.fixture
def root(datasets):
    return datasets / "folder"


def opened(root, **options):
    return load_benchmark("folder", size=32, root=root, **options)


def class_folders(root, classes, images=3):
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(images):
            picture(rng, 40, 50).save(root / name / f"shot {i}.JPG")
            mask = np.zeros((40, 50), np.uint8)
            mask[5:20, 5:30] = 1  # not 255: what is not 0 is the object
            Image.fromarray(mask).save(root / name / f"shot {i}.png")
    return root


def coco_file(path, name, categories, images):
    """A file in COCO's format: each image shows all categories, without "area", the last one 3 × 3 pixels small."""
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": c} for i, c in categories.items()]}
    path.mkdir(parents=True, exist_ok=True)
    for i in range(images):
        picture(rng, 40, 60).save(path / f"{name}{i}.jpg")
        content["images"].append({"id": i, "file_name": f"{name}{i}.jpg", "height": 40, "width": 60})
        for place, category in enumerate(categories):
            side = 3 if place == len(categories) - 1 else 12
            x, y = 2 + 14 * place, 5
            outline = [x, y, x + side, y, x + side, y + side, x, y + side]
            content["annotations"].append(
                {"id": 10 * i + place, "image_id": i, "category_id": category, "iscrowd": 0, "segmentation": [outline]}
            )
    (path / "_annotations.coco.json").write_text(json.dumps(content))


def test_folders_of_classes(tmp_path):
    root = class_folders(tmp_path / "mine", ("a", "b", "c", "d", "e"))
    (root / "a" / "notes.txt").write_text("not an image")
    picture(np.random.default_rng(1), 20, 20).save(root / "a" / "alone.jpg")
    benchmark = opened(root)
    assert benchmark.class_names == ["a", "b", "c", "d", "e"]
    assert [benchmark.classes(f, "test") for f in range(4)] == [[0, 4], [1], [2], [3]]
    with pytest.warns(UserWarning, match=r"1 files .* have no mask or no image and are ignored: .*alone\.jpg"):
        benchmark.check(0, "train")
    sample = benchmark.read("b/shot 1", 1)
    assert sample.image.shape == (40, 50, 3)
    assert sample.mask.sum() == 15 * 25
    assert np.array_equal(sample.objects, sample.mask)


def test_an_image_of_several_classes(root):
    benchmark = opened(root)
    ant = benchmark.read("ant/000", 0)
    assert ant.mask[20, 20]
    assert not ant.mask[20, 50]
    assert ant.objects[20, 50], "the bee beside it"
    drop = opened(root, novel_images="drop")
    names = [name for name, _ in benchmark.pairs(0, "train")]
    assert {n for n, _ in drop.pairs(0, "train")} < set(names), "bees beside ants, which fold 0 holds out"


def test_files_in_the_format_of_coco_are_matched_by_name(tmp_path):
    coco_file(tmp_path / "train", "t", {1: "cup", 2: "pen", 3: "pin"}, 3)
    coco_file(tmp_path / "valid", "v", {7: "pen", 9: "cup", 11: "tin", 4: "pin"}, 2)
    benchmark = opened(tmp_path)
    assert benchmark.class_names == ["cup", "pen", "pin", "tin"]
    assert [len(names) for _, _, names in benchmark._names] == [5, 5, 5, 2]
    names = {c: name for name, c in benchmark.listed("all")}
    assert benchmark.read(names[3], 3).mask.sum() == pytest.approx(144, abs=30)
    assert opened(tmp_path, least_area=50).class_names == ["cup", "pen", "tin"], "pins are 9 pixels"


def test_a_file_names_the_splits_and_how_often_classes_are_drawn(root):
    named = {"train": ["ant", "bee", "cat"], "val": ["dog"], "test": ["eel"], "weights": {"ant": 0, "bee": 0.0}}
    (root / "splits.json").write_text(json.dumps(named))
    benchmark = opened(root)
    assert benchmark.folds == 1
    assert [benchmark.classes(0, s) for s in ("train", "val", "test")] == [[0, 1, 2], [3], [4]]
    assert {benchmark.draw(np.random.default_rng(i), 0).class_id for i in range(20)} == {2}
    (root / "splits.json").write_text(json.dumps({"train": ["ant", "yak"]}))
    with pytest.raises(ValueError, match=r"splits\.json names classes that do not have two images .*: yak"):
        opened(root).classes(0, "train")
    (root / "splits.json").write_text(json.dumps({"train": ["ant"], "val": ["ant"]}))
    with pytest.raises(ValueError, match="ant named twice"):
        opened(root).classes(0, "train")


def test_another_folder_brings_the_test(root, tmp_path):
    others = class_folders(tmp_path / "others", ("x", "y"), images=2)
    benchmark = opened(root, test_root=others)
    assert benchmark.folds == 1
    assert [benchmark.class_names[c] for c in benchmark.classes(0, "test")] == ["x", "y"]
    assert len(benchmark.classes(0, "train") + benchmark.classes(0, "val")) == 8
    episode = test_episodes(benchmark, fold=0, shot=3, count=1)[0]
    assert len(set(episode.supports)) == 1, "of two images one is left for the supports"
    assert len({s for e in test_episodes(benchmark, fold=0, shot=3, count=9, split="val") for s in e.supports}) > 1
    assert benchmark.read(episode.query, episode.class_id).mask.any()
    draw_folder(tmp_path / "same", None, ("ant", "owl"))
    with pytest.raises(ValueError, match=r"contains training classes of .*: ant"):
        opened(root, test_root=tmp_path / "same").classes(0, "test")


@pytest.mark.parametrize(
    ("classes", "images", "message"),
    [
        ("a", 3, "1 of 1, which leaves none for train"),
        ("ab", 3, "2 of 2, which leaves none for train"),
        ("abcdef", 1, "two images or more in .*: 0 of 6"),
    ],
)
def test_too_little_is_refused_with_the_reason(tmp_path, classes, images, message):
    with pytest.raises(ValueError, match=message):
        opened(class_folders(tmp_path / "mine", classes, images)).check(0, "train")


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: give your data set's folder with --root"):
        opened(tmp_path / "nowhere").check(0, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image with a mask in .*empty: it should hold CLASS/NAME\.jpg"):
        opened(tmp_path / "empty").check(0, "train")
    with pytest.raises(ValueError, match="--test-root does not apply to shapes"):
        load_benchmark("shapes", size=32, test_root="x")


def test_bad_files_are_named(root, call):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "masks" / "ant" / "000.png")
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(root / "masks" / "bee" / "004.png")
    (root / "images" / "001.jpg").write_bytes(b"no image")
    benchmark = opened(root)
    for name, message in (
        ("ant/000", r"000\.png is 9 × 9 pixels, its image 80 × 60"),
        ("bee/004", r"004\.png marks no pixel of bee"),
        ("cat/001", r"001\.jpg is not an image"),
    ):
        with pytest.raises(UnreadableFileError, match=message):
            benchmark.read(name, 0)
        assert benchmark.flaws(name, 32)
    found = call("prepare.__main__", "folder", "--root", root, "--check")
    assert found.returncode == 1
    assert all(text in found.stdout for text in ("32 masks of 8 classes", "000.png", "004.png", "001.jpg"))


def test_a_cache_gives_the_same_pixels_and_notices_new_masks(root):
    plain = opened(root)
    build_cache(plain, 32)
    cached = opened(root)
    for name, class_id in plain.listed("all")[:5]:
        a, b = (x.read_square(name, class_id, 32) for x in (plain, cached))
        assert all(torch.equal(getattr(a, part), getattr(b, part)) for part in vars(a))
    Image.fromarray(np.full((60, 80), 255, np.uint8)).save(root / "masks" / "ant" / "000.png")
    with pytest.raises(ValueError, match="the present masks are"):
        opened(root)


def test_augmentation_keeps_the_object_and_repeats(root):
    benchmark = opened(root)
    kinds = tuple(AUGMENTATIONS)
    plain = benchmark.read_square("ant/000", 0, 32)
    for seed in range(20):
        a, b = (augment(plain, kinds, np.random.default_rng(seed)) for _ in range(2))
        assert all(torch.equal(getattr(a, part), getattr(b, part)) for part in vars(a))
        assert a.image.shape == plain.image.shape
        assert a.mask.sum() >= 0.9 * KEPT * plain.mask.sum()
    alike = Square(plain.mask.byte().expand(3, -1, -1), plain.mask, plain.mask, plain.mask)
    crop = augment(alike, ("crop",), np.random.default_rng(3))
    assert (crop.image[0].bool() ^ crop.mask).float().mean() < 0.1
    mirrored = [augment(plain, ("mirror",), np.random.default_rng(s)) for s in range(8)]
    assert {torch.equal(m.mask, plain.mask.flip(-1)) for m in mirrored} == {True, False}
    first, other, again = (EpisodeDataset(benchmark, 32, count=2, seed=s, augment=kinds)[0] for s in (1, 2, 1))
    assert torch.equal(first.query, again.query)
    assert not torch.equal(first.query, other.query)
    assert EpisodeDataset(benchmark, 32, count=2, seed=1).episode(0) == EpisodeDataset(
        benchmark, 32, count=2, seed=1, augment=kinds
    ).episode(0)
    with pytest.raises(ValueError, match="'blur' is none of mirror, crop, colour"):
        Config(augment="mirror,blur")


TRAIN = [
    "--benchmark",
    "folder",
    "--size",
    "64",
    "--epoch-episodes",
    "4",
    "--val-episodes",
    "4",
    "--test-episodes",
    "4",
    "--workers",
    "0",
    "--no-pretrained",
]


def test_a_training_on_it_resumes_and_is_scored(root, call, data):
    options = ["train", *TRAIN, "--start", "", "--shot", "1", "--name", "mine"]
    begun = call(*options, "--epochs", "1", "--root", root)
    assert begun.returncode == 0, begun.stderr
    folder = data / "runs" / "mine"
    assert json.loads((folder / "config.json").read_text())["augment"] == "mirror,crop,colour"
    more = call(*options, "--epochs", "2", "--root", root, "--resume")
    assert more.returncode == 0, more.stderr
    assert len((folder / "history.jsonl").read_text().splitlines()) == 2
    (root.parent / "other").mkdir()
    other = call(*options, "--epochs", "2", "--root", root.parent / "other")
    assert other.returncode == 2
    assert "was started with" in other.stderr
    assert "root" in other.stderr
    assert call("evaluate", "mine").returncode == 0
    refused = call("evaluate", "mine", "--fold", "1")
    assert refused.returncode == 2
    assert "this run was trained on" in refused.stderr


def test_the_weights_carry_the_threshold_that_validation_chose(root, call, data):
    done = call("train", *TRAIN, "--start", "", "--shot", "1,2", "--name", "cut", "--epochs", "1", "--root", root)
    assert done.returncode == 0, done.stderr
    folder = data / "runs" / "cut"
    model = HSNet.from_run(folder)
    said = f"thresholds {model.thresholds[0]} with one support, {model.thresholds[1]} with several; prior {model.prior}"
    assert said in done.stdout
    assert set(model.thresholds) <= set(THRESHOLDS)
    assert model.prior in PRIORS
    assert model.scales == (1.0, ENLARGED)
    model.thresholds, model.prior = (0.2, 0.8), 0.0
    save_model(folder / "model.safetensors", model)
    one, two = (
        Segmenter(folder).fit([root / "images" / "000.jpg"] * k, [root / "masks" / "ant" / "000.png"] * k)
        for k in (1, 2)
    )
    picture = root / "images" / "004.jpg"
    assert np.array_equal(one.predict(picture), one.predict_proba(picture) > 0.2)
    assert np.array_equal(two.predict(picture), two.predict_proba(picture) > 0.8)
    # The sizes of the weights are averaged, unless one is asked for.
    sizes = [
        Segmenter(folder, size=size).fit(root / "images" / "000.jpg", root / "masks" / "ant" / "000.png")
        for size in one.sizes
    ]
    assert np.allclose(one.predict_proba(picture), np.mean([s.predict_proba(picture) for s in sizes], 0), atol=1e-5)
    # The prior moves the probability of every pixel by the prototypes' map.
    alone = sizes[0]
    plain, alone.model.prior = alone.predict_proba(picture), 4.0
    moved = torch.tensor(alone.predict_proba(picture)).logit() - torch.tensor(plain).logit(eps=1e-4)
    alone.method = "prototypes"
    assert ((moved > 0).numpy() == alone.predict(picture)).mean() > 0.99
    assert Segmenter(folder, rule="majority").rule == "majority"
