"""Several processes train as one does. Each test starts them with torchrun, as a user would."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from helpers import TINY, finished, history, several
from safetensors.torch import load_file

from hsnet import Config, HSNet
from hsnet.distributed import all_gather, part_of, process_group
from hsnet.engine import Learner, test_run
from hsnet.optim import Clock

SETTINGS = TINY | {"batch": 4, "epoch_episodes": 10, "shot": "1", "precision": "float32"}
SETTINGS["foreground_weight"] = 100.0  # or so short a training finds nothing anywhere


def test_shares():
    for count in range(12):
        for of in range(1, 5):
            parts = [range(*part_of(count, i, of)) for i in range(of)]
            assert [i for part in parts for i in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all_gather([1, 2]) == [1, 2]  # alone


def test_two_processes_train_as_one(data, monkeypatch):
    # The last step of an epoch has one episode: the first process has none of it. Two episodes at a time and one thread
    # make every product the same one, added in the same order: no difference at all, here. With other products, rounding
    # puts a unit on the other side of its ReLU now and then, and Adam and Muon make that visible within a few steps.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = {**SETTINGS, "epoch_episodes": 9, "micro_batch": 2}
    for count, name in ((2, "two"), (1, "one")):
        out = finished(several(count, {**settings, "name": name}, data))
        assert ("2 processes" in out) == (count == 2)
        assert out.count("epoch   2") == 1
    one, two = data / "runs" / "one", data / "runs" / "two"
    for a, b in zip(history(one), history(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=5e-5)
        assert a["train_miou"] == pytest.approx(b["train_miou"], abs=0.01)
    alone, both = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, tensor in alone.items():
        assert (tensor - both[name]).norm() <= 1e-5 * tensor.norm(), name
    # Of the same weights the same scores, episode by episode.
    scores = json.loads((two / "test-1shot.json").read_text())
    assert scores["scores"]["HSNet"]["episodes"] == settings["test_episodes"]
    config = Config(**{**settings, "name": "two"})
    again = test_run(HSNet.from_run("two"), config, config.load_benchmark(), two, 1)
    assert again["areas"]["HSNet"] == scores["areas"]["HSNet"]
    assert again["scores"]["HSNet"]["miou"] == scores["scores"]["HSNet"]["miou"] > 0


def test_a_step_sends_one_message(data, monkeypatch):
    # A group of one sends what several would.
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in (address | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    config = Config(**{**SETTINGS, "epoch_episodes": 9})
    sent = dict.fromkeys(("all_reduce", "broadcast_object_list", "all_gather_object", "barrier"), 0)
    with process_group("cpu"):
        learner = Learner(config)
        for name in sent:
            function = getattr(torch.distributed, name)

            def counted(*arguments, name=name, function=function, **keywords):
                sent[name] += 1
                return function(*arguments, **keywords)

            monkeypatch.setattr(torch.distributed, name, counted)
        learner.train_one_epoch(Clock(config), lambda: False, lambda: None)
    assert learner.step == 3
    # What time it is, at the beginning; then one message a step.
    assert sent == {"all_reduce": 3, "broadcast_object_list": 1, "all_gather_object": 0, "barrier": 0}


def test_one_process_dies_and_the_run_goes_on_with_another_number(data):
    settings = {**SETTINGS, "name": "broken"}
    both = several(2, settings, data)
    folder = data / "runs" / "broken"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (folder / "last.pt").exists():
        time.sleep(0.05)
    children = Path(f"/proc/{both.pid}/task/{both.pid}/children").read_text().split()
    [second] = [pid for pid in children if "RANK=1" in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    os.kill(int(second), signal.SIGKILL)
    out, error = both.communicate(timeout=300)
    assert both.returncode != 0
    # Whoever notices first: the process itself, or torchrun, which sends SIGTERM, during a validation.
    assert "process 0 of 2: another process has ended, so this one stops too" in error or "stopped, saved in" in out
    assert not (folder / "lock").exists()
    out = finished(several(1, settings, data))
    assert "resuming after epoch 0, step" in out
    assert [line["epoch"] for line in history(folder)] == [1, 2]
