"""A data set of one's own in its three layouts: what is read, how classes are dealt, what is refused."""

import json

import numpy as np
import pytest
import torch
from drawn_datasets import folder as draw_folder
from drawn_datasets import instances, outline, picture
from PIL import Image
from pycocotools import mask as rle

from hsnet import EpisodeDataset, HSNet, Segmenter, test_episodes
from hsnet.benchmarks import Square, UnreadableFileError, load_benchmark
from hsnet.benchmarks.augment import AUGMENTATIONS, KEPT, augment
from hsnet.benchmarks.cache import build_cache
from hsnet.config import Config
from hsnet.pictures import read_image
from hsnet.runs import save_model
from hsnet.thresholds import PRIORS, THRESHOLDS


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
    path.mkdir(parents=True)
    names = {i: f"{name}{i}.jpg" for i in range(images)}
    marks = []
    for i, file in names.items():
        picture(rng, 40, 60).save(path / file)
        for place, category in enumerate(categories):
            side = 3 if place == len(categories) - 1 else 12
            x, y = 2 + 14 * place, 5
            marks.append({"image_id": i, "category_id": category, "segmentation": outline(x, y, x + side, y + side)})
    (path / "_annotations.coco.json").write_text(json.dumps(instances(names, marks, categories, 40, 60)))


def coco_project(root, categories, turn=1):
    """Four pictures a class, and two files in COCO's format; `categories` are those of training and validation, by number."""
    (root / "annotations").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[10:50, 5:45] = 200  # what the annotations mark, of the picture as it is seen
    stored = np.rot90(pixels) if turn == 6 else pixels  # a viewer turns it back, clockwise
    for part, named in zip(("train", "val"), categories, strict=True):
        (root / f"{part}2024").mkdir()
        shown = dict(enumerate((number for number in named for _ in range(4)), 1))
        for k in shown:
            Image.fromarray(np.ascontiguousarray(stored)).save(root / f"{part}2024/{k}.jpg", exif=exif, quality=95)
        marks = [{"image_id": k, "category_id": n, "segmentation": outline(5, 10, 45, 50)} for k, n in shown.items()]
        content = instances({k: f"{k}.jpg" for k in shown}, marks, named, 60, 80)
        (root / f"annotations/instances_{part}2024.json").write_text(json.dumps(content))
    return root


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
    build_cache(benchmark, 32)
    assert opened(root).class_names == benchmark.class_names, "the cache's own json is not COCO's"


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


THINGS = {i: f"thing {i}" for i in range(1, 9)}


def test_a_crowd_is_part_of_its_class(tmp_path):
    root = coco_project(tmp_path / "own", (THINGS, THINGS))
    path = root / "annotations/instances_train2024.json"
    (root / "annotations/captions_train2024.json").write_text("{}")
    content = json.loads(path.read_text())
    crowd = np.zeros((60, 80), np.uint8, order="F")
    crowd[50:, 40:] = 1
    code = rle.encode(crowd)
    part = {"size": code["size"], "counts": code["counts"].decode()}
    content["annotations"].append({"id": 999, "image_id": 1, "category_id": 1, "iscrowd": 1, "segmentation": part})
    path.write_text(json.dumps(content))
    benchmark = opened(root)
    name = next(n for n, c in benchmark.listed("all") if c == 0 and "train" in n and n.endswith("|1.jpg"))
    mask = benchmark.read(name, 0).mask
    assert mask[55, 60]
    assert mask[20, 20]
    assert mask.sum() == pytest.approx(1600 + 400, abs=90)


@pytest.mark.parametrize("turn", [1, 6])
def test_training_sees_a_turned_picture_as_predict_does(tmp_path, turn):
    benchmark = opened(coco_project(tmp_path / "own", (THINGS, THINGS), turn))
    episode = test_episodes(benchmark, fold=0, shot=1, count=1)[0]
    sample = benchmark.read(episode.query, episode.class_id)
    seen, _ = read_image(benchmark.image_path(episode.query))
    assert np.array_equal(sample.image, seen)
    assert sample.image[sample.mask].mean() > 190
    assert sample.image[~sample.mask].mean() < 20


def test_a_file_names_the_splits_and_how_often_classes_are_drawn(root):
    named = {"train": ["ant", "bee", "cat"], "val": ["dog"], "test": ["eel"], "weights": {"ant": 0, "bee": 0.0}}
    (root / "splits.json").write_text(json.dumps(named))
    benchmark = opened(root)
    assert benchmark.folds == 1
    assert [benchmark.classes(0, s) for s in ("train", "val", "test")] == [[0, 1, 2], [3], [4]]
    assert {benchmark.draw(np.random.default_rng(i), 0).class_id for i in range(20)} == {2}
    unknown = r"splits\.json names classes that do not have two images .*: yak"
    for wrong, message in (({"train": ["yak"]}, unknown), ({"train": ["ant"], "val": ["ant"]}, "ant named twice")):
        (root / "splits.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
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


def test_what_is_no_data_set_or_too_small_is_refused_with_the_reason(tmp_path):
    for classes, images, message in (
        ("a", 3, "1 of 1, which leaves none for train"),
        ("ab", 3, "2 of 2, which leaves none for train"),
        ("abcdef", 1, "two images or more in .*: 0 of 6"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(class_folders(tmp_path / classes, classes, images)).check(0, "train")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: give your data set's folder with --root"):
        opened(tmp_path / "nowhere").check(0, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image with a mask in .*empty: it should hold CLASS/NAME\.jpg"):
        opened(tmp_path / "empty").check(0, "train")
    twice = coco_project(tmp_path / "twice", (THINGS, THINGS | {8: "thing 1"}))
    with pytest.raises(ValueError, match=r"instances_val2024.json names a category twice: thing 1"):
        opened(twice).check(0, "train")
    with pytest.raises(ValueError, match="--test-root does not apply to shapes"):
        load_benchmark("shapes", size=32, test_root="x")


def test_bad_files_are_named(root, call):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "masks" / "ant" / "000.png")
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(root / "masks" / "bee" / "004.png")
    (root / "images" / "001.jpg").write_bytes(b"no image")
    benchmark = opened(root)
    messages = (
        r"000\.png is 9 × 9 pixels, its image 80 × 60",
        r"004\.png marks no pixel of bee",
        r"001\.jpg is not an image",
    )
    for name, message in zip(("ant/000", "bee/004", "cat/001"), messages, strict=True):
        with pytest.raises(UnreadableFileError, match=message):
            benchmark.read(name, 0)
        assert benchmark.flaws(name, 32)
    found = call("prepare.__main__", "folder", "--root", root, "--check", status=1)
    assert all(text in found.stdout for text in ("32 masks of 8 classes", "000.png", "004.png", "001.jpg"))


def test_a_cache_notices_new_masks(root):
    build_cache(opened(root), 32)
    Image.fromarray(np.full((60, 80), 255, np.uint8)).save(root / "masks" / "ant" / "000.png")
    with pytest.raises(ValueError, match="the present masks are"):
        opened(root)


def test_augmentation_keeps_the_object_and_repeats(root):
    benchmark = opened(root)
    kinds = tuple(AUGMENTATIONS)
    plain = benchmark.read_square("ant/000", 0, 32)
    for seed in range(20):
        a, b = (augment(plain, kinds, np.random.default_rng(seed), 32, support=seed % 2 == 0) for _ in range(2))
        assert all(torch.equal(getattr(a, part), getattr(b, part)) for part in vars(a))
        assert a.image.shape == plain.image.shape
        assert a.mask.sum() >= 0.9 * KEPT * plain.mask.sum()
    alike = Square(plain.mask.byte().expand(3, -1, -1), plain.mask, plain.mask, plain.mask)
    crop, zoom = (augment(alike, (kind,), np.random.default_rng(3), 32, support=True) for kind in ("crop", "zoom"))
    assert (crop.image[0].bool() ^ crop.mask).float().mean() < 0.1
    assert zoom.mask.sum() > 1.2 * plain.mask.sum()
    mirrored = [augment(plain, ("mirror",), np.random.default_rng(s), 32, support=True) for s in range(8)]
    assert {torch.equal(m.mask, plain.mask.flip(-1)) for m in mirrored} == {True, False}
    drawn = [EpisodeDataset(benchmark, 32, count=2, seed=s, augment=kinds) for s in (1, 2, 1)]
    first, other, again = (dataset[0] for dataset in drawn)
    assert torch.equal(first.query, again.query)
    assert not torch.equal(first.query, other.query)
    assert EpisodeDataset(benchmark, 32, count=2, seed=1).episode(0) == drawn[0].episode(0)
    with pytest.raises(ValueError, match="'blur' is none of mirror, crop, colour, zoom"):
        Config(augment="mirror,blur")


TRAIN = "--benchmark folder --size 64 --epoch-episodes 4 --val-episodes 4 --test-episodes 4 --workers 0"
TRAIN = ["train", *TRAIN.split(), "--no-pretrained", "--start", ""]


def test_a_training_on_it_resumes_and_is_scored(root, call, data):
    options = [*TRAIN, "--shot", "1", "--name", "mine"]
    call(*options, "--epochs", "1", "--root", root)
    folder = data / "runs" / "mine"
    assert json.loads((folder / "config.json").read_text())["augment"] == "mirror,crop,colour,zoom"
    call(*options, "--epochs", "2", "--root", root, "--resume")
    assert len((folder / "history.jsonl").read_text().splitlines()) == 2
    (root.parent / "other").mkdir()
    other = call(*options, "--epochs", "2", "--root", root.parent / "other", status=2)
    assert "was started with root" in other.stderr
    call("evaluate", "mine")
    assert "this run was trained on" in call("evaluate", "mine", "--fold", "1", status=2).stderr


def test_the_weights_carry_the_threshold_that_validation_chose(root, call, data):
    done = call(*TRAIN, "--shot", "1,2", "--name", "cut", "--epochs", "1", "--root", root)
    folder = data / "runs" / "cut"
    model = HSNet.from_run(folder)
    said = f"thresholds {model.thresholds[0]} with one support, {model.thresholds[1]} with several; prior {model.prior}"
    assert said in done.stdout
    assert set(model.thresholds) <= set(THRESHOLDS)
    assert (model.prior in PRIORS, model.zoom) == (True, True)
    model.thresholds, model.prior = (0.2, 0.8), 0.0
    save_model(folder / "model.safetensors", model)
    image, mask = root / "images" / "000.jpg", root / "masks" / "ant" / "000.png"
    one, two = (Segmenter(folder).fit([image] * k, [mask] * k) for k in (1, 2))
    picture = root / "images" / "004.jpg"
    assert np.array_equal(one.predict(picture), one.predict_proba(picture) > 0.2)
    assert np.array_equal(two.predict(picture), two.predict_proba(picture) > 0.8)
    # The prior moves the probability of every pixel by the prototypes' map.
    alone = Segmenter(folder, size=64).fit(image, mask)
    plain, alone.model.prior = alone.predict_proba(picture), 4.0
    moved = torch.tensor(alone.predict_proba(picture)).logit() - torch.tensor(plain).logit(eps=1e-4)
    alone.method = "prototypes"
    assert ((moved > 0).numpy() == alone.predict(picture)).mean() > 0.99
    assert Segmenter(folder, rule="majority").rule == "majority"
