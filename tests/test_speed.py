"""The program that measures: what it counts, that both paths agree, and its tables."""

import json

import pytest
import torch
from conftest import table_rows
from kit import reading

from hsnet import Config, HSNet
from hsnet.benchmarks import load_benchmark
from hsnet.benchmarks.cache import build_cache
from hsnet.runs import save_model
from hsnet.speed import measure, report

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench():
    return measure.Bench("efficientnet_lite0", 96, CPU)


def test_operations_are_counted_and_the_mask_covers_a_quarter():
    a, b = torch.zeros(10, 20), torch.zeros(20, 30)
    assert measure.count(lambda: a @ b) == 2 * 10 * 20 * 30 / 1e9
    assert measure.disc(400).float().mean() == pytest.approx(0.25, abs=1e-3)


def test_both_paths_agree(bench):
    rows = measure.measure_passes(bench, [torch.float32], repetitions=1)
    errors = {row["what"]: row["error"] for row in rows if row["path"] == "fast"}
    assert errors["1-shot"] < 1e-3
    assert errors["5-shot"] < 1e-3
    assert errors["training step"] < 0.05  # one unit on the other side of a ReLU shows
    assert all(row["gflop"] > 0 and row["seconds"] > 0 for row in rows)


def test_stages_and_tables(bench):
    about = {"device": "here", "backbone": "efficientnet_lite0", "size": 96, "mask": "a disc"}
    passes = {"what": "1-shot", "precision": "float32"}
    memory = {"what": "1-shot", "size": 96}
    result = about | {
        "limits": {"gflops": {"float32": 100.0}},
        "kernels": measure.measure_kernels([3, 4], 1, CPU),
        "stages": measure.measure_stages(bench, 1),
        "whole": [passes | {"path": "plain", "seconds": 3.0}, passes | {"path": "fast", "seconds": 2.0}],
        "segmenter": [{"shot": 1, "first": 2.0, "further": 1.0}],
        "memory": [memory | {"path": "plain", "bytes": None}, memory | {"path": "fast", "bytes": 10**9}],
    }
    assert {row["stage"] for row in result["stages"]} >= {"mixing", "decoding"}
    text = report.report(result)
    assert "| 1-shot, float32" in text
    assert "1.50" in text
    assert ["1-shot, 96 px", "–", "1.00 GB", "–"] in table_rows(text)
    assert report.speed_table(result) in text


def test_the_figures_are_there_before_memory_is_measured(monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure_memory", interrupted)
    monkeypatch.setattr(measure, "SIDES", [2, 3, 4])
    monkeypatch.setattr(measure, "measure_passes", lambda *_: [])
    with pytest.raises(KeyboardInterrupt):
        measure.measure("efficientnet_lite0", 64, CPU, True, tmp_path / "cpu.json")
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["side"] for row in result["kernels"]][::4] == [2, 3, 4]
    assert result["stages"]
    assert result["segmenter"]
    assert result["memory"] == []
    assert report.memory_table(result).count("\n") == 1  # a heading


def test_memory_is_measured_beyond_the_weights():
    plain, fast = measure.measure_memory("efficientnet_lite0", {"1-shot": [96]}, CPU)
    assert (plain["path"], fast["path"]) == ("plain", "fast")
    assert 0 < fast["bytes"] < 10**9
    assert fast["seconds"] > 0


def test_half_precision_is_scored_on_the_same_episodes(data, monkeypatch):
    monkeypatch.setattr(measure, "choose_precision", lambda *_: torch.bfloat16)  # emulated where the processor lacks it
    folder = data / "runs" / "tiny"
    folder.mkdir(parents=True)
    Config(benchmark="shapes", size=64, test_episodes=6, workers=0).save(folder / "config.json")
    model = HSNet("efficientnet_lite0", pretrained=False)
    model.training_size = 64
    save_model(folder / "model.safetensors", model)
    exact, half = measure.measure_score("tiny", CPU)["rows"]
    assert (exact["precision"], half["precision"]) == ("float32", "bfloat16")
    assert exact["episodes"] == half["episodes"] == 6
    assert exact["difference"] == 0
    low, high = half["difference_interval"]
    assert low <= half["difference"] <= high
    table = report.precision_table({"rows": [exact, half]})
    assert f"| {half['difference']:+.2f} [" in table


def test_reading_is_measured_with_and_without_the_cache(datasets):
    assert [r["source"] for r in reading.measure_reading("pascal", 32, 20, [0])["rows"]] == ["files"]
    build_cache(load_benchmark("pascal", size=32), 32)
    found = reading.measure_reading("pascal", 32, 20, [0, 1])
    assert [(r["source"], r["workers"]) for r in found["rows"]] == [
        ("files", 0), ("files", 1), ("cache", 0), ("cache", 1),
    ]  # fmt: skip
    assert all(r["episodes_per_second"] > 0 for r in found["rows"])
    consumption = reading.measure_consumption("efficientnet_lite0", 64, CPU, 1)
    assert consumption[0]["precision"] == "float32"
    text = reading.reading_table({"device": "here", "size": 32, "reading": found, "consumption": consumption})
    assert "cache, 1 workers" in text
    assert "a training step takes, efficientnet_lite0, float32" in text
