"""What only a GPU can show: a CPU's results, mixed precision, trainings, NCCL. Skipped where there is none.

pytest tests/test_gpu.py                        where there is one
HSNET_TEST_GPU=cpu pytest tests/test_gpu.py     the tests themselves, tried on a CPU
"""

import copy
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY, finished, history, several

from hsnet import Config, HSNet, Segmenter
from hsnet.conv4d import KERNELS
from hsnet.devices import choose_device, computing_in, exact_float32
from hsnet.engine import READ_EVERY, Learner, pixel_loss
from hsnet.engine import test_run as rerun
from hsnet.fast.compiling import compile_network
from hsnet.optim import Clock
from hsnet.train import train

GPU = os.environ.get("HSNET_TEST_GPU") or "cuda"

pytestmark = pytest.mark.skipif(GPU == "cuda" and not torch.cuda.is_available(), reason="no GPU here")

# The kernel; "fused": correlation and first convolution go together, which a GPU does when memory is scarce.
PATHS = *KERNELS, "center-pivot, fused"


def example(device=GPU, kernel="center-pivot"):
    """A network and two episodes; the same weights and pictures whatever the device."""
    torch.manual_seed(0)
    model = HSNet("efficientnet_lite0", kernel=kernel).eval().to(device)
    mask = torch.zeros(2, 128, 128, dtype=torch.bool, device=device)
    mask[:, 20:90, 30:100] = True
    return model, *torch.randn(2, 2, 3, 128, 128).to(device), mask


def gradients(path, device, dtype, monkeypatch, scale=1.0):
    """Loss and gradients of a batch of two."""
    device = choose_device(device)
    kernel, _, fused = path.partition(", ")
    monkeypatch.setattr("hsnet.fast.applies", lambda *_, **__: bool(fused))
    model, query, support, mask = example(device, kernel)
    with exact_float32(dtype):
        with computing_in(dtype, device):
            logits = model(query, support, mask)
        loss = pixel_loss(logits, mask, torch.ones(2, device=device)) / mask.numel()
        (scale * loss).backward()
    found = torch.cat([p.grad.flatten().cpu() for p in model.learned_parameters().values()]) / scale
    return loss.item(), found


@pytest.mark.parametrize("path", PATHS)
def test_the_gradients_are_those_of_a_cpu(path, monkeypatch):
    expected_loss, expected = gradients(path, "cpu", torch.float32, monkeypatch)
    loss, found = gradients(path, GPU, torch.float32, monkeypatch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (found - expected).norm() < 0.005 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", PATHS)
def test_half_precision_is_nearly_the_same(path, dtype, monkeypatch):
    expected_loss, expected = gradients(path, GPU, torch.float32, monkeypatch)
    loss, found = gradients(path, GPU, dtype, monkeypatch, scale=2.0**10)
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert (found - expected).norm() < 0.25 * expected.norm()


@pytest.mark.skipif(GPU == "cpu", reason="nobody waits for a CPU")
def test_a_pass_waits_for_nothing():
    model, query, support, mask = example()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(query, support, mask).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(GPU == "cpu", reason="tests/test_compiled.py has what a CPU compiles")
def test_a_compiled_network_is_the_same():
    """Several steps: the first ones of a graph run, the third one records, the others replay."""
    model, query, support, mask = example()
    compiled = copy.deepcopy(model)
    compile_network(compiled)

    def step(model):
        model.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        model(query, support, mask).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.learned_parameters().values()])

    with exact_float32():
        for _ in range(5):
            query, support = torch.randn(2, *query.shape, device=GPU)
            expected, found = step(model).clone(), step(compiled).clone()
            assert (found - expected).norm() < 0.005 * expected.norm()
            torch.compiler.cudagraph_mark_step_begin()
            masks = [one.predict(query, support[:, None], mask[:, None]) for one in (model, compiled)]
            assert (masks[0] != masks[1]).float().mean() < 0.001


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_training_that_is_resumed_and_tested_elsewhere(data, precision):
    config = Config(**{**TINY, "device": GPU, "precision": precision, "epochs": 1, "shot": "1"})
    train(config)
    folder = train(replace(config, epochs=2), resume=True)
    assert [line["epoch"] for line in history(folder)] == [1, 2]
    there = json.loads((folder / "test-1shot.json").read_text())
    elsewhere = replace(config, device="cpu", precision="float32")
    here = rerun(HSNet.from_run("tiny"), elsewhere, config.load_benchmark(), folder, 1)
    for ours, theirs in zip(there["areas"]["HSNet"], here["areas"]["HSNet"], strict=True):
        assert np.abs(np.subtract(ours, theirs)).max() <= 0.02 * TINY["size"] ** 2

    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[10:40, 10:40] = True
    masks = [Segmenter(folder, device=device).fit([picture], [mask]).predict(picture) for device in (GPU, "cpu")]
    assert np.mean(masks[0] != masks[1]) < 0.02


def test_torchrun(data):
    """One process, with the library that several GPUs would speak through."""
    assert GPU in finished(several(1, {**TINY, "device": GPU, "shot": "1"}, data))
    assert len(history(data / "runs" / "tiny")) == TINY["epochs"]


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_steps_wait_for_nothing_between_two_readings(precision, optimizer, monkeypatch):
    every = READ_EVERY.get(torch.device(GPU).type, 1)
    settings = {"device": GPU, "precision": precision, "optimizer": optimizer, "learning_rate": 0.001}
    config, log = Config(**TINY | settings | {"epoch_episodes": 2 * (3 * every)}), Learner.log
    waiting = torch.cuda.set_sync_debug_mode if GPU == "cuda" else lambda _: None  # "error": whoever waits, fails
    read = []

    def logged(learner):
        waiting("default")
        result = log(learner)
        read.append(learner.step)
        waiting("error")
        return result

    monkeypatch.setattr(Learner, "log", logged)
    learner = Learner(config)
    try:
        learner.train_one_epoch(Clock(config), lambda: False, lambda: None)
    finally:
        waiting("default")
    assert read == [every, 2 * every, 3 * every]


def test_a_loss_that_is_read_late_has_changed_nothing():
    """As test_train.py shows on a CPU: here the optimizers are those of a GPU."""
    config = Config(**TINY | {"device": GPU, "precision": "float32", "epoch_episodes": 10})
    learner, steps, forward = Learner(config), [], Learner.forward

    def spoiled(batch):
        steps.append({name: p.detach().clone() for name, p in learner.learned.items()})
        return forward(learner, batch) * (torch.nan if len(steps) == 3 else 1)

    learner.forward = spoiled
    with pytest.raises(ValueError, match="the loss is nan in epoch 1, step 3"):
        learner.train_one_epoch(Clock(config), lambda: False, lambda: None)
    assert learner.step == 2
    assert all(torch.equal(p, steps[2][name]) for name, p in learner.learned.items())
    assert any(not torch.equal(p, steps[1][name]) for name, p in learner.learned.items())
