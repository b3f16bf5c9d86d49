"""The programs, run as a user runs them, on scenes small enough for a test."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import OPTIONS, TINY, history
from PIL import Image
from safetensors.torch import load_file

from hsnet import Config, HSNet, fits, paper
from hsnet import evaluate as evaluate_program
from hsnet import train as train_program
from hsnet.config import add_settings, config_from
from hsnet.train import MEASURED, Clock, train


def run(program, *options):
    return subprocess.run([sys.executable, "-m", f"hsnet.{program}", *options], capture_output=True, text=True)


def test_a_training_from_the_command_line(data):
    result = run("train", *OPTIONS)
    assert result.returncode == 0, result.stderr
    folder = data / "runs" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "episodes.png", "history.jsonl", "last.pt", "model.safetensors", "previous.pt", "test-1shot.json",
        "test-2shot.json",
    ]  # fmt: skip
    assert Config.load(folder / "config.json") == Config(**TINY)
    assert [line["epoch"] for line in history(folder)] == [1, 2]
    test = json.loads((folder / "test-2shot.json").read_text())
    assert set(test["scores"]) == {"HSNet", "prototypes", "any object (oracle)", "all foreground"}
    assert test["scores"]["HSNet"]["episodes"] == 2  # of more shots fewer
    assert Image.open(folder / "episodes.png").width > 500
    assert str(folder / "episodes.png") in result.stdout
    assert "prototypes" in result.stdout
    assert "epoch 1" in result.stderr  # the progress bar
    assert HSNet.from_run("tiny").training_size == 64

    before = (folder / "last.pt").stat().st_mtime_ns
    again = run("train", *OPTIONS)
    assert again.returncode == 0
    assert "tiny is finished" in again.stdout
    assert "prototypes" in again.stdout
    assert (folder / "last.pt").stat().st_mtime_ns == before
    other = run("train", *OPTIONS, "--batch=3")
    assert other.returncode == 2
    assert other.stderr.startswith("error: the run tiny was started with batch 2, now 3. Give the same settings")
    listed = run("train", "--list")
    assert "tiny" in listed.stdout
    assert "finished" in listed.stdout
    assert "2 of 2" in listed.stdout

    scored = run("evaluate", "tiny", "--shot", "3", "--test-episodes", "2")
    assert scored.returncode == 0, scored.stderr
    assert (folder / "test-3shot-2.json").exists()  # another number of episodes: replaces nothing
    controls = run("evaluate", "tiny", "--controls")
    assert controls.returncode == 0, controls.stderr
    assert "wrong support" in controls.stdout
    assert (folder / "controls.json").exists()
    other_fold = run("evaluate", "tiny", "--fold", "1")
    assert other_fold.returncode == 2
    assert "trained on the classes of every fold of shapes but 0" in other_fold.stderr
    table = run("evaluate")
    assert "tiny" in table.stdout
    assert "shapes" in table.stdout


def test_resume_ends_where_an_unbroken_training_does(data, monkeypatch):
    settings = {**TINY, "epochs": 3, "precision": "float32"}
    whole = train(Config(**{**settings, "name": "whole"}))
    config = Config(**{**settings, "name": "broken"})
    learn, steps = train_program.Training.learn, []

    def interrupted(training, *inputs):
        learn(training, *inputs)
        steps.append(training.step)
        if len(steps) == 5:  # the second of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(train_program.Training, "learn", interrupted)
        with pytest.raises(SystemExit):
            train(config)
        assert torch.load(data / "runs" / "broken" / "last.pt", weights_only=True)["step"] == 2
        broken = train(config)
    assert len(steps) == 9
    assert same(broken, whole)
    longer = train(replace(config, epochs=4), resume=True)
    assert [line["epoch"] for line in history(longer)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"was started with epochs 4, now 3.*With --resume, epochs"):
        train(config)
    with pytest.raises(ValueError, match="started with batch 2, now 3"):
        train(replace(config, batch=3), resume=True)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(replace(config, name="new"), resume=True)


def same(one, other):
    """Whether two runs ended alike: weights bit for bit, losses and scores."""
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (one, other)]
    lines = [
        [{k: v for k, v in line.items() if k not in MEASURED} for line in history(folder)] for folder in (one, other)
    ]
    # The file of equal weights may differ: safetensors writes its header's entries in any order.
    other_by_chance = {"seconds": 0, "weights_sha256": ""}
    tests = [json.loads((folder / "test-1shot.json").read_text()) | other_by_chance for folder in (one, other)]
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    pairs = (
        *zip(*(state["model"].values() for state in states), strict=True),
        *zip(*(w.values() for w in weights), strict=True),
    )
    return all(torch.equal(a, b) for a, b in pairs) and lines[0] == lines[1] and tests[0] == tests[1]


def start(*options):
    return subprocess.Popen(
        [sys.executable, "-m", "hsnet.train", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs with Ctrl-C ignored, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_save_and_say_so(data, number, status):
    options = [o for o in OPTIONS if not o.startswith(("--epochs", "--workers"))]
    process = start(*options, "--epochs=500", "--workers=1")
    folder = data / "runs" / "tiny"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((folder / "history.jsonl").exists() and history(folder)):
        time.sleep(0.1)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: workers get it too
    out, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert "the same command goes on" in out
    assert "Traceback" not in error
    stored = torch.load(folder / "last.pt", weights_only=True)
    assert stored["epoch"] == len(history(folder)) >= 1
    HSNet.from_run("tiny")
    assert not list(folder.glob("*.tmp"))
    assert not (folder / "lock").exists()


def test_the_loss_falls_and_all_foreground_is_beaten(data):
    config = Config(**{**TINY, "size": 64, "batch": 4, "epochs": 1, "epoch_episodes": 24})
    torch.manual_seed(0)
    # One episode seen again and again: whoever cannot learn that cannot learn anything.
    from hsnet.benchmarks import load_benchmark
    from hsnet.episodes import EpisodeDataset

    benchmark = load_benchmark("shapes", size=64)
    batch = EpisodeDataset(benchmark, 64, fold=0, count=1)[0]
    training = train_program.Training(config, data, train_program.Interruption(), None)
    losses = []
    for _ in range(60):
        training.learn(batch, training.pixels(batch), 0.2)
        losses.append(training.losses - sum(losses))
    assert losses[-1] < 0.5 * losses[0]
    model = training.model
    masks = evaluate_program.predictor(model.eval(), torch.device("cpu"))(batch)["HSNet"]
    iou = (masks & batch.query_mask).sum() / (masks | batch.query_mask).sum()
    assert iou > 0.5 > batch.query_mask.float().mean()


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (
            "train",
            ["--benchmark", "voc"],
            "benchmark is 'voc': choose one of emoji, emoji-photo, shapes, pascal, coco, fss",
        ),
        ("train", ["--backbone", "resnet7"], "backbone is 'resnet7': choose one of efficientnet_lite0"),
        ("train", ["--fold", "7"], "fold is 7: choose one of 0, 1, 2, 3"),
        ("train", ["--shot", "0"], "shot is '0': give numbers of supports"),
        ("train", ["--size", "16"], "size is 16: it must be 32 or more"),
        ("train", ["--benchmark", "coco", "--root", "/nowhere"], "no annotations/instances_train*.json under /nowhere"),
        ("train", ["--benchmark", "shapes", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        ("evaluate", ["nothing"], "no run 'nothing'"),
        ("evaluate", ["nothing", "--shot", "0"], "--shot is 0"),
    ],
)
def test_mistakes_get_one_line(program, options, message):
    result = run(program, *options)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_written(data, monkeypatch):
    (data / "runs").write_text("a file where the folder should be")
    with pytest.raises(PermissionError, match=r"runs.tiny cannot be written \(.*\): set HSNET_DATA"):
        train(Config(**TINY))
    (data / "runs").unlink()
    (data / "runs").mkdir()
    if os.geteuid() == 0:  # root may write anywhere: let the system call refuse
        monkeypatch.setattr(
            os, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
    else:
        (data / "runs").chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot be written \(Permission denied\)"):
        train(Config(**TINY))


def test_the_paper_settings():
    config = paper("coco", "resnet101", 2)
    assert (config.size, config.batch, config.learning_rate, config.schedule) == (400, 40, 1e-3, "constant")
    assert config.model_settings["backbone"] == "resnet101"
    assert (config.foreground_weight, config.minutes) == (1.0, 0.0)


def test_a_command_line_for_photographs_starts_from_the_paper():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    assert config_from(parser.parse_args([])) == Config()
    photographs = config_from(parser.parse_args(["--benchmark", "coco", "--fold", "3", "--batch", "4"]))
    assert photographs == replace(paper("coco", fold=3), batch=4)
    assert config_from(parser.parse_args(["--no-mask-support"])).mask_support is False


def test_schedules():
    constant = Clock(Config(schedule="constant"), 10, 0.0)
    cosine = Clock(Config(schedule="cosine", epochs=10), 10, 0.0)
    assert constant.schedule(0.9) == 1
    assert cosine.schedule(0) < 0.04
    assert cosine.schedule(0.05) > 0.98
    assert cosine.schedule(1) == 0
    assert cosine.progress(5) == 0.5
    late = Clock(Config(epochs=10, minutes=1.0), 10, seconds_before=45)
    assert 0.75 <= late.progress(5) < 0.8


def test_help_explains():
    result = run("train", "--help")
    assert "Ctrl-C" in result.stdout
    assert all(f"--{name.replace('_', '-')}" in result.stdout for name in TINY)


def gradients(config, data, **state):
    """The gradients of a training's first step, as one vector; `state` changes the training before."""
    torch.manual_seed(0)
    training = train_program.Training(config, data, train_program.Interruption(), None)
    batch = next(iter(training.dataset.loader(config.batch)))
    loss, masks = training.gradients(batch, training.pixels(batch), config.micro_batch)
    assert masks.shape == batch.query_mask.shape
    scale = training.scaler.get_scale() if training.scaler.is_enabled() else 1.0
    return loss, torch.cat([p.grad.flatten() for p in training.learned.values()]) / scale


@pytest.mark.parametrize("kernel", ["center-pivot", "separable"])
def test_micro_batches_and_recomputation_change_nothing(data, kernel):
    config = Config(**{**TINY, "batch": 3, "micro_batch": 3, "precision": "float32", "kernel": kernel, "levels": 2})
    loss, whole = gradients(config, data)
    for change in ({"micro_batch": 1}, {"micro_batch": 2}, {"recompute": True}):
        again, parts = gradients(replace(config, **change), data)
        assert again.item() == pytest.approx(loss.item(), rel=1e-5)
        assert (parts - whole).norm() <= 1e-5 * whole.norm()
    assert torch.equal(parts, whole)  # recomputed: the same operations


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_gradients(data, precision):
    config = Config(**{**TINY, "batch": 2, "micro_batch": 2, "precision": "float32", "levels": 2})
    loss, exact = gradients(config, data)
    again, rounded = gradients(replace(config, precision=precision), data)
    assert again.item() == pytest.approx(loss.item(), rel=0.02)
    assert (rounded - exact).norm() <= 0.1 * exact.norm()


def test_the_same_seed_gives_the_same_bits(data):
    settings = {**TINY, "precision": "float32", "epochs": 1, "shot": "1"}
    # The loader's processes and what they prepare ahead change nothing.
    runs = [train(Config(**{**settings, "name": f"run{workers}", "workers": workers})) for workers in (0, 2)]
    assert same(*runs)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_episode(data, monkeypatch):
    config = Config(**{**TINY, "epoch_episodes": 8, "precision": "float32"})
    backward, calls = train_program.backward, []

    def spoiled(model, query, *rest, **keywords):
        calls.append(len(query))
        if len(calls) == 3:  # then each of the step's episodes alone
            query = query * torch.tensor([1.0, float("nan")]).view(2, 1, 1, 1)
        elif len(calls) == 5:
            query = query * float("nan")
        return backward(model, query, *rest, **keywords)

    monkeypatch.setattr(train_program, "backward", spoiled)
    monkeypatch.setattr("hsnet.model.check_inputs", lambda *_, **__: None)  # it refuses such pictures
    monkeypatch.setattr(train_program, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train_program, "SAVE_SHARE", float("inf"))
    with pytest.raises(ValueError, match=r"the loss is nan in epoch 1, step 3.* 5 \(query 'train\.0\..*loss nan\)"):
        train(config)
    state = torch.load(data / "runs" / "tiny" / "last.pt", weights_only=True)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    monkeypatch.setattr(train_program, "EXPLODED", 0.1)
    with pytest.raises(ValueError, match=r"the loss is 0\.\d+ in epoch 1, step 3: training stops"):
        train(config)


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
    monkeypatch.setattr(train_program, "_validate", lambda _: next(scores))
    folder = train(Config(**{**TINY, "epochs": 50, "patience": 2, "epoch_episodes": 2, "shot": "1"}))
    assert [line["best"] for line in history(folder)] == [True, True, False, False]


def test_out_of_memory_names_what_fits(data, monkeypatch):
    config = Config(**{**TINY, "batch": 4, "epoch_episodes": 4, "precision": "float32"})
    backward = train_program.backward

    def scarce(model, query, *rest, few, **keywords):
        if few > 1 or not model.encoder.recompute:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return backward(model, query, *rest, few=few, **keywords)

    monkeypatch.setattr(train_program, "backward", scarce)
    # What is tried in a process of its own is not patched there.
    monkeypatch.setattr(fits, "_rehearse", lambda c: "" if c.recompute and c.micro_batch == 1 else None)
    with pytest.raises(
        MemoryError, match=r"out of memory on cpu with 4 episodes of 64 px.*--micro-batch 1 --recompute fits"
    ):
        train(config)
    train(replace(config, micro_batch=1, recompute=True))  # as it says; no --resume, no other name


LIMITED = """
import resource, sys
kind, limit = sys.argv.pop(1), int(sys.argv.pop(1))
resource.setrlimit(getattr(resource, kind), (limit, limit))
from hsnet import train
train.run_program(train.main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system must enforce the limit")
@pytest.mark.parametrize(
    ("kind", "field", "more"),
    [
        # Far from both edges: one episode takes about 300 MB of data and 450 of addresses, all sixteen take a gigabyte.
        ("RLIMIT_DATA", "VmData", 450_000_000),
        ("RLIMIT_AS", "VmSize", 600_000_000),
    ],
)
def test_what_fits_under_a_limit_does_fit(data, kind, field, more):
    look = f"""
import re
import hsnet.train
print(1024 * int(re.search(r"{field}:\\s+(\\d+)", open("/proc/self/status").read())[1]))
"""
    # What Python and the libraries take is under the limit too.
    taken = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    settings = {**TINY, "size": 256, "batch": 16, "micro_batch": 16, "epoch_episodes": 16, "epochs": 1}
    settings |= {"precision": "float32", "shot": "1"}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    command = [sys.executable, "-c", LIMITED, kind, str(int(taken) + more), *options]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # how much each thread takes for itself differs from start to start
    done = subprocess.run(command, capture_output=True, text=True, env=alone)
    assert done.returncode == 2, done.stderr
    assert "error: out of memory on cpu with 16 episodes of 256 px at a time" in done.stderr
    assert "Traceback" not in done.stderr
    found = re.search(r"--micro-batch [1-8]( --recompute)? fits", done.stderr)
    assert found, done.stderr
    again = subprocess.run([*command, *found[0].split()[:-1]], capture_output=True, text=True, env=alone)
    assert again.returncode == 0, again.stderr
    assert history(data / "runs" / "tiny")[0]["epoch"] == 1


def test_memory_is_estimated_and_measured(data, capsys, monkeypatch):
    config = Config(**{**TINY, "batch": 2, "epochs": 1, "epoch_episodes": 4, "shot": "1", "precision": "float32"})
    foreseen = train(config, memory=True)
    out = capsys.readouterr().out
    estimated, measured = (
        float(re.search(pattern, out)[1]) for pattern in (r"about (\S+) GB, est", r"(\S+) GB at its")
    )
    assert 0.5 * measured < estimated < 2 * measured
    # Looking at the memory changes nothing of the training.
    assert same(foreseen, train(replace(config, name="other")))
    monkeypatch.setattr(train_program, "free_memory", lambda _: 1e6)
    with pytest.raises(MemoryError, match=r"GB are free on cpu: (--micro-batch|give a smaller --size)"):
        train(replace(config, name="scarce"), memory=True)


def test_tensorboard(data):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    folder = train(Config(**{**TINY, "tensorboard": True, "shot": "1"}))
    board = events.EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("val_miou")] == [1, 2]
    assert [event.step for event in board.Images("validation episodes")] == [1, 2]
