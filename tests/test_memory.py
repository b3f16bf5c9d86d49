"""What a training says that finds too little memory."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY, history

from hsnet import Config, HSNet
from hsnet.devices import is_out_of_memory
from hsnet.memory import MEASURED, bytes_of_step
from hsnet.train import train

CPU = torch.device("cpu")


def test_the_estimate_is_what_was_measured_and_scales_between():
    def about(count=1, **settings):
        return bytes_of_step(Config(precision="float32", **settings), count, CPU)

    for row in json.loads(MEASURED.read_text())["rows"]:
        config = Config(**{name: row[name] for name in ("backbone", "size", "recompute", "precision")})
        for count in (1, 3):
            assert bytes_of_step(config, count, CPU) == row["fixed"] + count * row["each"]
    # A formula fitted at two sizes: what is measured at one follows from the other within a tenth.
    small, large = about(backbone="resnet50", size=256), about(backbone="resnet50", size=400)
    assert small < about(backbone="resnet50", size=320) < large
    assert about(size=64) < about(size=128) < about(size=256) < about(size=400)
    assert about(size=400) < about(backbone="resnet50", size=400)
    assert about(backbone="resnet50", size=400, recompute=True) < large


def test_out_of_memory_says_what_needs_less(data, monkeypatch):
    config = Config(**{**TINY, "batch": 4, "epoch_episodes": 4, "shot": "1", "precision": "float32"})
    forward, steps = HSNet.forward, []

    def scarce(model, query, *rest):
        steps.append(len(query))
        if len(query) > 1 or (config.epochs == 2 and len(steps) == 6):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return forward(model, query, *rest)

    monkeypatch.setattr(HSNet, "forward", scarce)
    message = r"out of memory on cpu: training 4 and scoring 4 episodes of 64 px at a time needs about 0\.\d+ GB\. "
    less = r"Less.*--micro-batch 1: about 0\.\d+ GB.*--size 32 and another --name: about 0\.\d+ GB\. "
    with pytest.raises(MemoryError, match=message + less + "Nothing was saved yet: the same command, with"):
        train(config)
    config = replace(config, micro_batch=1)  # as it says; no --resume, no other name
    steps.clear()
    monkeypatch.setattr("hsnet.train.SAVE_EVERY", 0.0)
    with pytest.raises(MemoryError, match=r"training 1 and scoring 1 .*The run is saved in .*tiny: the same command"):
        train(config)
    config = replace(config, epochs=3)
    assert [line["epoch"] for line in history(train(replace(config, recompute=True), resume=True))] == [1, 2, 3]


def test_a_real_allocation_that_fails_is_recognised():
    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            allocate()
        assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
