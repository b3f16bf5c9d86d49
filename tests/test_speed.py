"""The program that measures: what it counts, that both paths agree, and its tables."""

import json
from unittest import mock

import pytest
import torch
import torchvision
from conftest import table_rows
from kit import gpu, reading, speed

from hsnet import HSNet, fast
from hsnet.benchmarks import load_benchmark
from hsnet.benchmarks.cache import build_cache
from hsnet.correlation import hypercorrelation_pyramid
from hsnet.fast.folding import fold_normalisation
from hsnet.fast.machine import few_operations
from hsnet.speed import measure
from hsnet.speed.__main__ import report

CPU = torch.device("cpu")


def test_both_paths_agree_and_operations_are_counted():
    a, b = torch.zeros(10, 20), torch.zeros(20, 30)
    assert measure.count(lambda: a @ b)["gflop"] == 2 * 10 * 20 * 30 / 1e9
    assert measure.disc(400).float().mean() == pytest.approx(0.25, abs=1e-3)  # the mask covers a quarter
    rows = measure.measure_passes(measure.Bench("efficientnet_lite0", 96, CPU), [torch.float32], repetitions=1)
    errors = {row["what"]: row["error"] for row in rows if row["path"] == "fast"}
    assert max(errors["1-shot"], errors["5-shot"]) < 1e-3
    assert errors["training step"] < 0.05  # one unit on the other side of a ReLU shows
    assert all(row["gflop"] > 0 and row["seconds"] > 0 for row in rows)
    # Memory is measured beyond the weights.
    plain, fast = measure.measure_memory("efficientnet_lite0", {"1-shot": [96]}, CPU)
    assert (plain["path"], fast["path"]) == ("plain", "fast")
    assert 0 < fast["bytes"] < 10**9
    assert fast["seconds"] > 0


def test_measured_is_written_before_memory_and_shown_in_tables(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "measure_memory", mock.Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(measure, "SIDES", [2, 3, 4])
    monkeypatch.setattr(measure, "measure_passes", lambda *_: [])
    with pytest.raises(KeyboardInterrupt):
        measure.measure("efficientnet_lite0", 64, CPU, True, tmp_path / "cpu.json")
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["side"] for row in result["kernels"]][::4] == [2, 3, 4]
    assert {row["stage"] for row in result["stages"]} >= {"mixing", "decoding"}
    assert result["segmenter"]
    assert result["memory"] == []
    assert speed.memory_table(result).count("\n") == 1  # a heading
    passes, memory = {"what": "1-shot", "precision": "float32"}, {"what": "1-shot", "size": 96}
    result["whole"] = [passes | {"path": "plain", "seconds": 3.0}, passes | {"path": "fast", "seconds": 2.0}]
    result["memory"] = [memory | {"path": "plain", "bytes": None}, memory | {"path": "fast", "bytes": 10**9}]
    assert ["1-shot, float32", "3.00 s", "2.00 s", "1.50"] in table_rows(speed.speed_table(result))
    assert ["1-shot, 96 px", "–", "1.00 GB", "–"] in table_rows(speed.memory_table(result))
    assert report(result).count("center-pivot, plain") == 3


def test_what_a_gpu_does_is_measured_on_a_processor_too(tmp_path):
    path, work = tmp_path / "gpu.json", (("1-shot", 1), ("5-shot", 1), ("training step", 2))
    options = {"work": work, "precisions": ("float32", "bfloat16"), "repetitions": 1, "benchmark": "shapes"}
    some = {"minutes": 60, "training_minutes": 0.02, "paths": ("plain", "figure")}
    result = gpu.measure_gpu(path, CPU, "efficientnet_lite0", 64, **options, **some)
    assert json.loads(path.read_text()) == result
    found = {(r["what"], r["path"], r["precision"]): r for r in result["passes"]}
    assert len(found) == 2 * 2 * len(work)
    plain, figure = (found["1-shot", way, "float32"] for way in ("plain", "figure"))
    assert figure["operations"] < plain["operations"]
    assert figure["reading"] == 0
    for part in ("stages", "trainings"):
        assert [r["precision"] for r in result[part]] == ["float32", "bfloat16"]
    assert {r["stage"] for r in result["stages"][0]["rows"]} >= {"mixing", "decoding"}
    assert all(r["losses"] for r in result["trainings"])
    text = speed.gpu_report(result)
    lines = [row[1:4] for row in table_rows(text) if row[0] == "1-shot"]
    assert lines[:2] == [["1", "plain", "float32"], ["1", "plain", "bfloat16"]]
    assert "Older than the code" not in text
    assert "Older than the code" in speed.gpu_report(result | {"code": "another"})

    result = gpu.measure_gpu(path, CPU, "efficientnet_lite0", 64, minutes=0, **options)
    assert len(result["skipped"]) == 3 * 2 * len(work) + 2 + 2  # passes, stages, trainings
    assert "1-shot, 1, compiled, bfloat16" in speed.gpu_report(result)


def test_goals_are_computed_from_steps():
    step = {"what": "training step", "batch": 20, "path": "plain", "precision": "float32"}
    step |= {"seconds": 0.3, "gflop": 10.0}
    half = step | {"precision": "bfloat16"}
    rows = [step, *(half | {"path": path, "seconds": s} for path, s in (("figure", 0.06), ("compiled", 0.05)))]
    rows.append(half | {"what": "1-shot", "batch": 1, "path": "figure", "seconds": 0.009})
    table = table_rows(speed.goals_table({"passes": rows, "limits": {"bfloat16": 1000.0}}))
    # 159,965 steps are the mean of the four folds.
    assert [row[-1] for row in table[1:]] == ["6.0", "20 %", "2.2 hours", "9.0 ms"]


def test_reading_is_measured_with_and_without_the_cache(datasets):
    assert [r["source"] for r in reading.measure_reading("pascal", 32, 20, [0])["rows"]] == ["files"]
    build_cache(load_benchmark("pascal", size=32), 32)
    found = reading.measure_reading("pascal", 32, 20, [0, 1])
    expected = [(source, workers) for source in ("files", "cache") for workers in (0, 1)]
    assert [(r["source"], r["workers"]) for r in found["rows"]] == expected
    assert all(r["episodes_per_second"] > 0 for r in found["rows"])
    consumption = reading.measure_consumption("efficientnet_lite0", 64, CPU, 1)
    assert consumption[0]["precision"] == "float32"
    text = reading.reading_table({"device": "here", "size": 32, "reading": found, "consumption": consumption})
    assert "cache, workers: 1" in text


def test_a_gpu_is_given_few_operations_and_not_waited_for():
    """On a processor that computes as a GPU would; the numbers depend neither on the device nor on the image's size."""
    model = HSNet("resnet50", pretrained=False).eval()
    query, support = torch.randn(2, 1, 3, 288, 288)
    mask = measure.disc(288)[None]
    with torch.no_grad(), few_operations():
        levels = fast.features_of(model.backbone, query, support)
        learned = measure.count(lambda: model.decoder(model.encoder(hypercorrelation_pyramid(*levels))))
        backbone = measure.count(lambda: fast.features_of(model.backbone, query, support))
        whole = measure.count(lambda: model(query, support, mask))
        network = torchvision.models.resnet50()
        fold_normalisation(network)
        theirs = measure.count(lambda: network(torch.cat([query, support])))
    assert learned["operations"] <= 150
    assert backbone["operations"] <= theirs["operations"]
    assert whole["operations"] <= 280
    assert learned["reading"] == backbone["reading"] == whole["reading"] == 0


def test_a_training_step_of_a_gpu_reads_nothing_back():
    model = HSNet("efficientnet_lite0", pretrained=False)
    query, support = torch.randn(2, 2, 3, 64, 64)
    mask = measure.disc(64).expand(2, 64, 64)

    def step():
        torch.nn.functional.cross_entropy(model(query, support, mask), mask.long()).backward()

    assert measure.count(step)["reading"] > 0  # what is fast on a processor looks at the mask
    with few_operations():
        assert measure.count(step)["reading"] == 0
