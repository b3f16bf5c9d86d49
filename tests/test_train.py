"""The programs, run as a user runs them, on scenes small enough for a test."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import OPTIONS, TINY, history, outcome, python
from kit import controls
from PIL import Image
from safetensors.torch import load_file

from hsnet import Config, EpisodeDataset, HSNet, engine, paper
from hsnet import train as train_program
from hsnet.benchmarks import load_benchmark
from hsnet.config import add_settings, config_from
from hsnet.devices import exact_float32
from hsnet.engine import Learner, predictor
from hsnet.optim import Clock, Muon, orthogonalise
from hsnet.speed.measure import Operations
from hsnet.train import train


def test_a_training_from_the_command_line(data, call, monkeypatch, capsys):
    result = python("-m", "hsnet.train", *OPTIONS)
    folder = data / "runs" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "episodes.png", "history.jsonl", "last.pt", "model.safetensors", "test-1shot.json",
        "test-2shot.json",
    ]  # fmt: skip
    assert Config.load(folder / "config.json") == Config(**TINY)
    assert [line["epoch"] for line in history(folder)] == [1, 2]
    scores = json.loads((folder / "test-2shot.json").read_text())["scores"]
    assert set(scores) == {"HSNet", "prototypes", "any object (oracle)", "all foreground"}
    assert scores["HSNet"]["episodes"] == 2  # of more shots fewer
    assert Image.open(folder / "episodes.png").width > 500
    assert all(text in result.stdout for text in (str(folder / "episodes.png"), "prototypes"))
    assert "epoch 1" in result.stderr  # the progress bar
    assert HSNet.from_run("tiny").training_size == 64

    before = (folder / "last.pt").stat().st_mtime_ns
    again = call("train", *OPTIONS)
    assert all(text in again.stdout for text in ("tiny is finished", "prototypes"))
    assert (folder / "last.pt").stat().st_mtime_ns == before
    other = call("train", *OPTIONS, "--batch=3", status=2)
    assert other.stderr.startswith("error: the run tiny was started with batch 2, now 3. Give the same settings")
    assert all(text in call("train", "--list").stdout for text in ("tiny", "finished", "2 of 2"))

    call("evaluate", "tiny", "--shot", "3", "--test-episodes", "2")
    assert (folder / "test-3shot-2.json").exists()  # another number of episodes: replaces nothing
    monkeypatch.setattr(sys, "argv", ["controls", "tiny"])
    controls.main()
    assert "wrong support" in capsys.readouterr().out
    assert (folder / "controls.json").exists()
    assert all(text in call("evaluate").stdout for text in ("tiny", "shapes"))


def test_resume_ends_where_an_unbroken_training_does(data, monkeypatch):
    settings = {**TINY, "epochs": 3, "precision": "float32"}
    unbroken = train(Config(**{**settings, "name": "unbroken"}))
    config = Config(**{**settings, "name": "broken"})
    log, steps = Learner.log, []

    def interrupted(learner):
        read = log(learner)
        steps.append(learner.step)
        if len(steps) == 4:  # one more is done: the second of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return read

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "log", interrupted)
        with pytest.raises(SystemExit):
            train(config)
        assert torch.load(data / "runs" / "broken" / "last.pt", weights_only=True)["step"] == 2
        broken = train(config)
    assert len(steps) == 9
    assert outcome(broken) == outcome(unbroken)
    longer = train(replace(config, epochs=4), resume=True)
    assert [line["epoch"] for line in history(longer)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"was started with epochs 4, now 3.*With --resume, epochs"):
        train(config)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(replace(config, name="new"), resume=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_save_and_say_so(data, number, status):
    options = [o for o in OPTIONS if not o.startswith(("--epochs", "--workers"))]
    command = [sys.executable, "-m", "hsnet.train", *options, "--epochs=500", "--workers=1"]
    # A shell starts background jobs with Ctrl-C ignored, and what they start inherits that.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler), "start_new_session": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard)
    folder = data / "runs" / "tiny"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((folder / "history.jsonl").exists() and history(folder)):
        time.sleep(0.1)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: workers get it too
    out, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert "the same command resumes it" in out
    assert "Traceback" not in error
    stored = torch.load(folder / "last.pt", weights_only=True)
    assert stored["epoch"] == len(history(folder)) >= 1
    assert stored.keys() == {  # the format: runs that were begun before go on
        "config", "model", "optimizers", "scaler", "epoch", "step", "losses", "areas", "seconds", "history",
        "best", "best_epoch", "best_model", "finished",
    }  # fmt: skip
    HSNet.from_run("tiny")
    assert not list(folder.glob("*.tmp"))
    assert not (folder / "lock").exists()


def test_the_loss_falls_and_all_foreground_is_beaten():
    # One episode seen again and again: whoever cannot learn that cannot learn anything.
    learner = Learner(Config(**{**TINY, "batch": 1, "schedule": "constant"}))
    one = EpisodeDataset(load_benchmark("shapes", size=64), 64, fold=0, count=1)
    batch, learner.dataset = one[0], EpisodeDataset(one.benchmark, 64, 60 * [one.episode(0)])
    losses = []
    learner.train_one_epoch(Clock(learner.config), lambda: False, lambda: losses.append(learner.losses - sum(losses)))
    assert len(losses) == 60
    assert losses[-1] < 0.5 * losses[0]
    masks = predictor(learner.model.eval(), torch.device("cpu"))(batch)["HSNet"]
    iou = (masks & batch.query_mask).sum() / (masks | batch.query_mask).sum()
    assert iou > 0.5 > batch.query_mask.float().mean()


def test_a_folder_that_cannot_be_written(data):
    (data / "runs").write_text("a file where the folder should be")
    with pytest.raises(PermissionError, match=r"runs.tiny cannot be written \(.*\): set HSNET_DATA"):
        train(Config(**TINY))


def test_a_command_line_for_photographs_starts_from_the_paper():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    assert config_from(parser.parse_args([])) == Config()
    photographs = config_from(parser.parse_args(["--benchmark", "coco", "--fold", "3", "--batch", "4"]))
    assert photographs == replace(paper("coco", fold=3), batch=4)
    assert config_from(parser.parse_args(["--no-mask-support"])).mask_support is False
    with pytest.raises(ValueError, match="size is 16: it must be 32 or more"):
        config_from(parser.parse_args(["--size", "16"]))


def test_schedules():
    constant = Clock(Config(schedule="constant"))
    cosine = Clock(Config(schedule="cosine", epochs=10))
    assert constant.schedule(0.9) == 1
    assert cosine.schedule(0) < 0.04
    assert cosine.schedule(0.05) > 0.98
    assert cosine.schedule(1) == 0
    assert cosine.progress(5) == 0.5
    late = Clock(Config(epochs=10, minutes=1.0), seconds_before=45)
    assert 0.75 <= late.progress(5) < 0.8


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_muon_makes_singular_values_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s[-1] = 0.05 * s[0]  # a weak direction is lifted too
    result = orthogonalise(u * s @ v)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (u.T @ result @ v.T - torch.diag(torch.diagonal(u.T @ result @ v.T))).abs().max() < 1e-3
    stack = torch.randn(3, *shape)
    torch.testing.assert_close(orthogonalise(stack), torch.stack([orthogonalise(m) for m in stack]))


def test_a_step_of_muon_has_the_size_of_the_learning_rate_whatever_the_gradient():
    for scale in (1e-3, 1e3):
        weight = torch.nn.Parameter(torch.zeros(6, 4, 3, 3))
        weight.grad = scale * torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.1).step()
        largest = torch.linalg.matrix_norm(weight.detach().flatten(1), 2)
        assert 0.06 < largest < 0.13


def gradients(config):
    """Loss and gradients of a training's first step, as one vector."""
    learner = Learner(replace(config, epoch_episodes=config.batch))
    learner.train_one_epoch(Clock(config), lambda: False, lambda: None)
    assert learner.step == 1
    return learner.losses, learner.message.gradients


@pytest.mark.parametrize("kernel", ["center-pivot", "separable"])
def test_micro_batches_and_recomputation_change_nothing_and_half_precision_little(kernel):
    config = Config(**{**TINY, "batch": 3, "micro_batch": 3, "precision": "float32", "kernel": kernel, "levels": 2})
    loss, found = gradients(config)
    for change in ({"micro_batch": 1}, {"micro_batch": 2}, {"recompute": True}):
        again, other = gradients(replace(config, **change))
        assert again == pytest.approx(loss, rel=1e-5)
        assert (other - found).norm() <= 1e-5 * found.norm()
    assert torch.equal(other, found)  # recomputed: the same operations
    for precision in ("bfloat16", "float16"):
        again, rounded = gradients(replace(config, precision=precision))
        assert again == pytest.approx(loss, rel=0.02)
        assert (rounded - found).norm() <= 0.1 * found.norm()


def spoiled(*places, calls):
    """A forward that gives NaN when it is called for the so-manieth time; `calls`: the batches' sizes."""
    forward = Learner.forward

    def call(learner, batch):
        calls.append(len(batch.query))
        return forward(learner, batch) * (torch.nan if len(calls) in places else 1)

    return call


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_episode(data, monkeypatch):
    config = Config(**{**TINY, "epoch_episodes": 8, "precision": "float32"})
    monkeypatch.setattr(Learner, "forward", spoiled(3, 5, calls=[]))  # then each of the step's episodes alone
    monkeypatch.setattr(train_program, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train_program, "SAVE_SHARE", float("inf"))
    with pytest.raises(ValueError, match=r"the loss is nan in epoch 1, step 3.* 5 \(query 'train\.0\..*loss nan\)"):
        train(config)
    state = torch.load(data / "runs" / "tiny" / "last.pt", weights_only=True)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    monkeypatch.setattr(engine, "EXPLODED", 0.1)
    with pytest.raises(ValueError, match=r"the loss is 0\.\d+ in epoch 1, step 3: training stops"):
        train(config)


def trained(config, every, forward=None):
    """A learner after an epoch whose steps are read `every` so many times, and the errors of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(engine.READ_EVERY, "cpu", every)
        if forward:
            patched.setattr(Learner, "forward", forward)
        learner, read, stopped = Learner(config), [], []
        try:
            learner.train_one_epoch(Clock(config), lambda: False, lambda: read.append(learner.step))
        except ValueError as error:
            stopped.append(str(error))
    return learner, read, stopped


def held(learner):
    """What steps change, as bits: weights, momenta and numbers of steps."""
    state = learner.state()
    tensors = [*state["model"].values()]
    for optimizer in state["optimizers"]:
        tensors += [tensor for parameter in optimizer["state"].values() for tensor in parameter.values()]
    return [tensor.numpy().tobytes() for tensor in tensors]


STEPS = Config(**{**TINY, "precision": "float32", "schedule": "constant", "epoch_episodes": 10})


def test_steps_are_read_together_as_they_are_one_by_one():
    (one, each, _), (several, few, _) = trained(STEPS, 1), trained(STEPS, 3)
    assert (each, few) == ([1, 2, 3, 4, 5], [3, 5])
    assert held(one) == held(several)
    assert (one.losses, one.score.class_iou()) == (several.losses, several.score.class_iou())


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_loss_that_is_read_later_has_changed_nothing(optimizer):
    config, calls = replace(STEPS, optimizer=optimizer, learning_rate=0.001), []
    # The third step of five, and later the second of its episodes alone.
    learner, read, error = trained(config, 10, spoiled(3, 7, calls=calls))
    assert calls == [2, 2, 2, 2, 2, 1, 1]
    assert (read, learner.step) == ([], 2)
    assert "the loss is nan in epoch 1, step 3" in error[0]
    assert "worst of its episodes: 5 (query 'train.0." in error[0]
    assert held(learner) == held(trained(replace(config, epoch_episodes=4), 1)[0])


def test_a_step_that_overflows_half_precision_is_left_out():
    learner = Learner(replace(STEPS, precision="float16", epoch_episodes=2))
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = held(learner)
    learner.train_one_epoch(Clock(STEPS), lambda: False, lambda: None)
    assert (learner.step, learner.scaler.get_scale()) == (1, 2.0**99)
    assert held(learner)[: len(before)] == before
    assert not any(any(bits) for bits in held(learner)[len(before) :])  # momenta


# The operations for which a processor would wait for a device.
WAITING = [f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_step_waits_for_nothing(precision, optimizer, monkeypatch):
    config = replace(STEPS, precision=precision, optimizer=optimizer, learning_rate=0.001, workers=1)
    learner, forward, counts = Learner(config), Learner.forward, []

    def unseen(learner, batch):  # the network's own operations are counted in tests/paper
        before = started.names.copy()
        logits = forward(learner, batch)
        started.names = before
        return logits

    def waited():
        return sum(started.names[name] for name in WAITING)

    monkeypatch.setattr(Learner, "forward", unseen)
    monkeypatch.setattr("hsnet.fast.applies", lambda *_, **__: False)
    with Operations() as started:
        assert torch.ones(1).item()
        assert waited() == 1  # it is seen
        learner.train_one_epoch(Clock(config), lambda: False, lambda: counts.append(waited()))
    assert counts == 5 * counts[:1]  # before the first step the loader draws a seed


def test_a_training_starts_from_another_s_weights(data):
    settings = {**TINY, "epochs": 1, "epoch_episodes": 2, "shot": "1", "precision": "float32"}
    first = train(Config(**{**settings, "name": "first"}))
    second = Config(**{**settings, "name": "second", "start": "first", "seed": 1})
    second = replace(second, optimizer="adam", learning_rate=1e-9)  # steps so small that they change nothing
    weights, started, fresh = (
        load_file(folder / "model.safetensors")
        for folder in (first, train(second), train(replace(second, name="fresh", start="")))
    )
    assert all(torch.allclose(weights[name], started[name], atol=1e-6) for name in weights)
    assert not all(torch.allclose(weights[name], fresh[name], atol=1e-3) for name in weights)
    assert Config.load(data / "runs" / "second" / "config.json").start == "first"
    # At another size: the weights carry the size of their own training.
    larger = train(replace(second, name="larger", size=2 * second.size))
    assert HSNet.from_run(larger).training_size == 2 * second.size
    # Once begun it needs the other no more.
    shutil.rmtree(first)
    train(replace(second, epochs=2), resume=True)
    with pytest.raises(FileNotFoundError, match="start is 'first': no run 'first'"):
        train(replace(second, name="third"))
    earlier = data / "runs" / "third" / "config.json"
    assert not earlier.parent.exists()  # nothing was begun, nothing is left
    earlier.parent.mkdir()
    earlier.write_text("of an earlier run")
    with pytest.raises(ValueError, match="kernel 'center-pivot', not 'separable'"):
        train(replace(second, name="third", start="second", kernel="separable"))
    assert earlier.read_text() == "of an earlier run"


def test_patience(data, monkeypatch):
    scores = iter((5.0, 9.0, 3.0, 4.0, 5.0))
    monkeypatch.setattr(Learner, "validate", lambda _: next(scores))
    folder = train(Config(**{**TINY, "epochs": 50, "patience": 2, "epoch_episodes": 2, "shot": "1"}))
    assert [line["best"] for line in history(folder)] == [True, True, False, False]


def test_float32_is_exact_and_leaves_the_process_as_it_was(data):
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    with exact_float32():
        assert not any(backend.allow_tf32 for backend in backends)
    with exact_float32(torch.bfloat16):
        assert [backend.allow_tf32 for backend in backends] == before
    train(Config(**{**TINY, "precision": "float32", "epochs": 1, "epoch_episodes": 2, "shot": "1"}))
    assert [backend.allow_tf32 for backend in backends] == before
    assert before[0]  # PyTorch's default: there is something to restore
