"""The program that scores: runs of photographs under both protocols, on other benchmarks, and the authors' weights."""

import hashlib
import json

import helpers
import pytest
import torch
from kit.golden import reference_model, reference_state_dict

from hsnet import Config, EpisodeDataset, HSNet, test_episodes
from hsnet.benchmarks import load_benchmark
from hsnet.engine import evaluate, predictor
from hsnet.reference import load_reference
from hsnet.train import train

TINY = {name: value for name, value in helpers.TINY.items() if name not in ("benchmark", "name")}
TINY |= {"epochs": 1, "epoch_episodes": 4, "test_episodes": 6, "shot": "1"}


def test_a_run_under_the_strict_protocol(datasets, data, call):
    rules = {"protocol": "strict", "novel_images": "drop", "boundary": "ignore", "rule": "majority"}
    folder = train(Config(**TINY, benchmark="pascal", **rules))
    assert folder.name == "pascal-fold0-efficientnet_lite0-strict"
    call("evaluate", folder.name, "--shot", "2", "--precision", "float32")
    test, original = (json.loads((folder / f"{prefix}test-2shot.json").read_text()) for prefix in ("", "original-"))
    assert (test["protocol"], test["rule"], test["scored_at"], original["scored_at"]) == (
        "strict", "majority", "size", "original size",
    )  # fmt: skip
    assert test["training"] == {
        "benchmark": "pascal", "fold": 0, "protocol": "strict", "novel_images": "drop", "boundary": "ignore",
    }  # fmt: skip
    assert test["precision"] == "float32"
    assert test["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert [part["seed"] for part in test["lists"]] == [0, 1, 2, 3, 4]
    assert all(part["episodes"] == 6 for part in test["lists"])
    assert test["scores"]["HSNet"]["episodes"] == 30
    # Scored in each picture's own pixels.
    benchmark = load_benchmark("pascal", size=64, protocol="strict")
    episodes = test_episodes(benchmark, fold=0, shot=2, count=6)
    assert [row[0] for row in original["areas"]["HSNet"][:6]] == [e.class_id for e in episodes]
    for row, episode in zip(original["areas"]["HSNet"], episodes, strict=False):
        sample = benchmark.read(episode.query, episode.class_id)
        # Each counted pixel is in one intersection or the other union.
        assert row[1] + row[4] == row[2] + row[3] == int((~sample.ignored).sum())


def test_a_run_of_coco_on_pascal(datasets, data, call):
    folder = train(Config(**TINY, benchmark="coco", fold=1))
    assert json.loads((folder / "test-1shot.json").read_text())["source"]["source"] == "ours"
    call("evaluate", folder.name, "--benchmark", "coco-to-pascal", "--original-size")
    test = json.loads((folder / "coco-to-pascal-fold1-original-test-1shot.json").read_text())
    assert test["source"]["episodes"] == "ours"
    assert {row[0] for row in test["areas"]["HSNet"]} <= {1, 5, 12, 17}  # bicycle, bus, horse, sofa
    for options, message in (
        ("--benchmark coco-to-pascal --fold 2", "2: this run was trained on 6 of its classes, such as bird"),
        ("--benchmark pascal", "on 4 of its classes, such as car. Test it with --fold 1"),
        ("--fold 0", "--fold 0: this run was trained on 20 of its classes, such as person"),
        ("--rule mine", "rule is 'mine': choose one of paper, majority"),
        ("--backbone resnet50", "a run stores its backbone"),
    ):
        assert message in call("evaluate", folder.name, *options.split(), status=2).stderr
    with pytest.raises(ValueError, match="coco-to-pascal, which is only for tests: train on coco"):
        train(Config(**TINY, benchmark="coco-to-pascal"))


def test_the_authors_weights(datasets, data, tmp_path, call):
    path = tmp_path / "best_model.pt"
    torch.save(reference_state_dict("resnet50", "module."), path)
    options = ("--reference-checkpoint", path, "--benchmark", "pascal", "--backbone", "resnet50", "--fold", "2")
    call("evaluate", *options, "--test-episodes", "2", "--device", "cpu")
    folder = data / "reference" / "pascal-fold2-resnet50"
    test = json.loads((folder / "test-1shot.json").read_text())
    assert test["training"]["checkpoint"] == "best_model.pt"
    assert len(test["training"]["sha256"]) == 64
    assert Config.load(folder / "config.json").size == test["size"] == 400

    benchmark = load_benchmark("pascal", size=400)
    episodes = test_episodes(benchmark, fold=2, shot=1, count=2)
    predict = predictor(reference_model("resnet50").eval(), torch.device("cpu"))
    dataset = EpisodeDataset(benchmark, 400, episodes)
    expected = evaluate(predict, dataset, benchmark.classes(2, "test"), batch=2, workers=0, title="")
    for ours, theirs in zip(test["areas"]["HSNet"], expected["HSNet"].rows, strict=True):
        assert ours == pytest.approx(theirs, abs=80)  # half a thousandth of the pixels


def test_reference_mistakes(datasets, call):
    pascal = "--benchmark", "pascal"
    for options, message in (
        (pascal, "no file FILE: the authors link"),
        ((), "--benchmark is None: give the benchmark of the checkpoint's training, coco, fss, pascal"),
        ((*pascal, "--backbone", "resnet7"), "backbone is 'resnet7': choose one of"),
        (("some-run",), "give a run or --reference-checkpoint, not both"),
    ):
        assert message in call("evaluate", "--reference-checkpoint", "FILE", *options, status=2).stderr


def test_what_is_no_checkpoint(datasets, tmp_path):
    path = tmp_path / "page.pt"
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page.pt is not a checkpoint, or damaged"):
        load_reference(HSNet("resnet50", pretrained=False), path)
