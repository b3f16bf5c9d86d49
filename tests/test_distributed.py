"""Several processes train as one does. Each test starts them with torchrun, as a user would."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from hsnet.distributed import collect, part_of
from hsnet.train import train
from test_train import TINY, history

SETTINGS = {**TINY, "batch": 4, "epochs": 2, "epoch_episodes": 10, "shot": "1", "precision": "float32"}


def several(count, settings, **keywords):
    """`torchrun` with so many processes, started."""
    options = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={port}"]
    return subprocess.Popen(
        [*command, "-m", "hsnet.train", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords
    )


def test_shares():
    for count in range(12):
        for of in range(1, 5):
            parts = [range(*part_of(count, i, of)) for i in range(of)]
            assert [i for part in parts for i in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert collect([1, 2]) == [1, 2]  # alone


def test_two_processes_train_as_one_and_one_goes_on_where_two_were(data):
    # The last step of an epoch has two episodes, the validation four, so that neither is dealt evenly to three.
    both = several(2, {**SETTINGS, "name": "two"})
    out, error = both.communicate(timeout=500)
    assert both.returncode == 0, error
    assert "2 processes" in out
    assert out.count("epoch   2") == 1
    one, two = train_alone("one"), data / "runs" / "two"
    for a, b in zip(history(one), history(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["train_miou"] == pytest.approx(b["train_miou"], abs=0.2)
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        # Muon's steps have one size whatever the gradient's, so that rounding errors come through where it is nearly zero.
        assert (tensor - weights[1][name]).norm() <= 1e-3 * tensor.norm(), name
    # Of the same weights the same scores, episode by episode.
    scores = json.loads((two / "test-1shot.json").read_text())
    assert scores["scores"]["HSNet"]["episodes"] == SETTINGS["test_episodes"]
    from hsnet.benchmarks import load_benchmark
    from hsnet.config import Config
    from hsnet.evaluate import test_run
    from hsnet.model import HSNet

    again = test_run(
        HSNet.from_run("two"), Config(**{**SETTINGS, "name": "two"}), load_benchmark("shapes", size=64), two, 1
    )
    assert again["areas"] == scores["areas"]
    assert again["scores"] == scores["scores"]


def train_alone(name):
    from hsnet.config import Config

    return train(Config(**{**SETTINGS, "name": name}))


def test_one_process_dies_and_the_run_goes_on_with_another_number(data):
    settings = {**SETTINGS, "name": "broken", "epochs": 400}
    both = several(2, settings, start_new_session=True)
    folder = data / "runs" / "broken"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not ((folder / "history.jsonl").exists() and history(folder)):
        time.sleep(0.2)
    workers = subprocess.run(["pgrep", "-P", str(both.pid)], capture_output=True, text=True).stdout.split()
    ranks = {int(rank_of(pid)): int(pid) for pid in workers}
    os.kill(ranks[1], signal.SIGKILL)
    out, error = both.communicate(timeout=300)
    assert both.returncode != 0
    assert "process 0 of 2: another process has ended, so this one stops too" in error
    assert "goes on from the last checkpoint" in error
    assert not (folder / "lock").exists()
    if not (folder / "last.pt").exists():  # a slow machine: killed before the first checkpoint was due
        return
    epochs = torch.load(folder / "last.pt", weights_only=True)["epoch"]
    alone = several(1, {**settings, "epochs": epochs + 1}, env={**os.environ})
    out, error = alone.communicate(timeout=300)
    assert alone.returncode == 2 or "going on" in out, error


def rank_of(pid):
    environment = open(f"/proc/{pid}/environ").read().split("\0")  # noqa: PTH123, SIM115
    return next(entry.removeprefix("RANK=") for entry in environment if entry.startswith("RANK="))
