"""The experiments of a table are trained, tested and skipped as they should; small ones, of the benchmark drawn by code."""

import dataclasses
import functools

import helpers
import pytest
from safetensors.torch import load_file

from hsnet.config import Config
from hsnet.reproduce import experiments, report
from hsnet.reproduce.experiments import LAST_EPOCH, Experiment, state
from hsnet.runs import lock

TINY = {name: value for name, value in helpers.TINY.items() if name not in ("shot", "name")}
TINY |= {"size": 32, "epoch_episodes": 2, "val_episodes": 2, "precision": "float32", "pretrained": False}


def tiny(**changes):
    return Experiment(Config(**TINY | changes), shots=(1,))


@pytest.fixture
def tried(monkeypatch):
    found = [tiny(), tiny(fold=1)]
    monkeypatch.setitem(experiments.TABLES, "tried", lambda protocol: found)
    return found


@pytest.fixture
def run(call):
    return functools.partial(call, "reproduce.__main__", "--device", "cpu", "--workers", "0")


def test_a_folder_with_other_settings_is_refused_before_anything_is_trained(tried, run):
    tried[1].folder.mkdir(parents=True)
    tiny(fold=1, batch=4).config.save(tried[1].folder / "config.json")
    out = run("tried", status=2)
    assert "(batch 4, not 2). Rename or delete" in out.stderr
    assert [state(each).kind for each in tried] == ["missing", "other settings"]


def test_from_training_to_table(tried, run):
    out = run("tried", "--only", "0", "--micro-batch", "1")
    one = tried[0]
    assert [state(each).kind for each in tried] == ["done", "missing"]
    assert Config.load(one.folder / "config.json") == dataclasses.replace(one.config, micro_batch=1)
    assert [test[1]["scores"]["HSNet"]["episodes"] for test in (one.tests(), one.tests(last=True))] == [4, 4]
    assert "ours, best epoch" in out.stdout
    assert "– (1/2)" in out.stdout
    # The last epoch is tested with its own weights: equal to the best's only where the last was the best.
    history = helpers.history(one.folder)
    best, last = (load_file(folder / "model.safetensors") for folder in (one.folder, one.folder / LAST_EPOCH))
    assert len(history) == 2
    assert all(best[name].equal(last[name]) for name in best) == history[1]["best"]
    # What is done is skipped; a lost test is made again, and nothing else.
    before = {path: path.stat().st_mtime_ns for path in one.folder.rglob("*.json")}
    out = run("tried", "--only", "0")
    assert out.stdout.count(": done") == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}
    lost, kept = one.folder / LAST_EPOCH / "test-1shot.json", one.folder / "test-1shot.json"
    lost.unlink()
    out = run("tried", "--only", "0")
    assert "1 of 1, shapes, EfficientNet-Lite0, fold 0: cut 2, working in" in out.stdout
    assert state(one).kind == "done"
    assert kept.stat().st_mtime_ns == before[kept]
    assert lost.exists()


def test_what_another_process_trains_is_left_to_it(tried, run):
    tried[0].folder.mkdir(parents=True)
    tried[0].config.save(tried[0].folder / "config.json")
    with lock(tried[0].folder):
        out = run("tried", "--only", "0")
    assert out.stdout.count("running 0 (process ") == 1


def test_a_dry_run_touches_nothing(run, data):
    out = run("--dry-run", "--only", "resnet50")
    assert out.stdout.startswith(report.experiments_table(words="resnet50"))
    assert not list(data.iterdir())
    assert "no table 'voc'" in run("voc", "--dry-run", status=2).stderr


SCRIPT = """
import sys
from hsnet.reproduce import experiments
from hsnet.reproduce import __main__ as reproduce
from hsnet.reproduce.experiments import Experiment
from hsnet.config import Config, run_program
one = Experiment(Config(**{settings!r}), shots=(1,))
experiments.TABLES["tried"] = lambda protocol: [one]
sys.argv.append("tried")
run_program(reproduce.main)
"""


def test_several_processes_fill_an_experiment(data, tmp_path):
    source = SCRIPT.format(settings=TINY | {"epochs": 1})
    out = helpers.finished(helpers.several(2, {"device": "cpu", "workers": 0}, tmp_path, source))
    assert state(tiny(epochs=1)).kind == "done"
    assert out.count("1 of 1") == 2  # one process speaks: at the beginning, and of the score
    assert out.count("ours, last epoch") == 1
