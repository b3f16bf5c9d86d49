"""Which smaller settings are tried where memory is short, and what limits it."""

import subprocess
import sys

import pytest

from hsnet import Config, fits
from hsnet.config import RANGES
from hsnet.devices import _cgroup_limits

CONFIG = Config(benchmark="shapes", size=96, batch=4, device="cpu")


def test_the_order_in_which_settings_are_tried():
    found = [setting for setting, _ in fits.smaller(CONFIG, 4)]
    assert found == [
        "--micro-batch 2",
        "--micro-batch 1",
        "--micro-batch 4 --recompute",
        "--micro-batch 2 --recompute",
        "--micro-batch 1 --recompute",
        "--size 64 --micro-batch 1 --recompute",
        "--size 32 --micro-batch 1 --recompute",
    ]
    given = Config(**{**vars(CONFIG), "recompute": True})
    assert [setting for setting, _ in fits.smaller(given, 1)] == found[-2:]
    for setting, config in fits.smaller(CONFIG, 4):
        assert f"--micro-batch {config.micro_batch}" in setting
        assert config.recompute == ("--recompute" in setting)
        assert config.size >= RANGES["size"][0]


@pytest.mark.parametrize(
    ("answer", "begun", "message"),
    [
        (
            lambda c: "" if c.micro_batch == 1 else None,
            False,
            "--micro-batch 1 fits, as was just tried, and changes no",
        ),
        (
            lambda c: "" if c.size == 32 else None,
            False,
            "does not fit either. --size 32 --micro-batch 1 --recompute fits",
        ),
        (lambda c: "" if c.size == 32 else None, True, "with it and another --name: this run is of 96 px"),
        (lambda c: None, False, "no smaller setting fits with a little to spare, down to 32 px: it needs more memory"),
        (lambda c: "no such file", False, "could not be tried (no such file): give --micro-batch 2, and less"),
    ],
)
def test_messages(monkeypatch, answer, begun, message):
    monkeypatch.setattr(fits, "_rehearse", answer)
    assert message in fits.what_fits(CONFIG, 4, "cpu", begun)


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("", ""),
        (f"raise SystemExit({fits.NO_ROOM})", None),
        ("import os; os.abort()", None),  # a library that gave up
        ("raise SystemExit('error: std::bad_alloc')", None),
        ("raise SystemExit('error: no such folder')", "error: no such folder"),
    ],
)
def test_how_a_rehearsal_ends(monkeypatch, script, answer):
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **keywords: run([sys.executable, "-c", script], **keywords))
    assert fits._rehearse(CONFIG) == answer


def test_limits_of_control_groups(tmp_path):
    def group(folder, names, limit, used, files):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip(names, (limit, used, files), strict=True):
            (folder / name).write_text(text)

    second = "memory.max", "memory.current", "memory.stat"
    group(tmp_path / "jobs", second, "1000\n", "600\n", "anon 100\ninactive_file 200\n")
    group(tmp_path / "jobs" / "one", second, "max\n", "300\n", "anon 100\ninactive_file 0\n")
    assert _cgroup_limits("0::/jobs/one\n", tmp_path) == [(1000, 400)]
    first = "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"
    group(tmp_path / "memory", first, "9223372036854771712\n", "5\n", "inactive_file 9\ntotal_inactive_file 1\n")
    group(tmp_path / "memory" / "a", first, "70\n", "50\n", "inactive_file 9\ntotal_inactive_file 20\n")
    assert _cgroup_limits("5:cpu:/\n4:memory:/a\n", tmp_path) == [(70, 30)]
    assert _cgroup_limits("0::/nowhere\n", tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits are read under Linux")
def test_a_limit_leaves_less_free_memory():
    program = """
import resource, torch
from hsnet.devices import free_memory, memory_limits
before = free_memory(torch.device("cpu"))
assert "ulimit -d" not in memory_limits()
resource.setrlimit(resource.RLIMIT_DATA, (2**40, 2**40))
assert free_memory(torch.device("cpu")) > before / 2
used = memory_limits()["ulimit -d"][1]
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**20, used + 2**20))
assert 0 <= free_memory(torch.device("cpu")) <= 2**20
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
