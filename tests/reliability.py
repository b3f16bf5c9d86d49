"""What a training and its files withstand, tried and counted.

    make reliability                             everything: a quarter of an hour on one core
    make reliability OPTIONS="--only kills"      some of: kills, pictures, inputs

Trainings of a few steps are killed, and must end with the same weights, bit for bit, the same losses and scores as one that
was left alone. Pictures, command lines and config files are damaged at random, and each must be answered by name.

Written: data/reliability.json. It needs Linux or macOS. The status is 1 if one thing was not withstood.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable

import helpers
import torch
from bad_inputs import measure_inputs, measure_pictures
from conftest import table_rows
from kit.reliability import table

from hsnet import runs
from hsnet import train as training
from hsnet.config import Config, run_program
from hsnet.paths import data_folder
from hsnet.train import train

# Eight steps in two epochs, on figures drawn by code, in float32: the same bits whenever it is repeated. So short a training
# finds nothing anywhere unless foreground weighs much.
TINY = helpers.TINY | {"epoch_episodes": 8, "val_episodes": 2, "test_episodes": 2, "shot": "1", "precision": "float32"}
TINY["foreground_weight"] = 100.0


class Child(multiprocessing.get_context("fork").Process):
    """A training in a process of its own: a fork of this one, which has loaded everything already."""

    def __init__(self, name: str, prepare: Callable[[], object] = lambda: None):
        """`prepare` is called in the child before it trains the run called `name`."""
        super().__init__(name=name)
        self.prepare, self.log = prepare, data_folder() / f"{name}.log"
        self.start()

    def run(self) -> None:
        """Train: in the child."""
        with self.log.open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        training.SAVE_EVERY, training.SAVE_SHARE = 0.0, float("inf")  # a checkpoint after each step
        self.prepare()
        run_program(lambda: train(Config(**TINY | {"name": self.name})))

    def wait(self) -> int:
        """Its exit status; of a killed one, the signal with a minus."""
        self.join()
        return self.exitcode


@functools.cache
def left_alone() -> dict:
    """The outcome of a training that nobody disturbs."""
    if Child("whole").wait():
        raise RuntimeError(f"the undisturbed training failed: {(data_folder() / 'whole.log').read_text()}")
    return helpers.outcome(data_folder() / "runs" / "whole")


def _strike(at: int, tear: bool) -> Callable[[], None]:
    """Kill the process at its `at`-th call of fsync or rename; with `tear`, half of the file is on the disk then."""

    def prepare():
        calls = 0

        def struck(function):
            def call(*arguments):
                nonlocal calls
                calls += 1
                if calls == at:
                    if tear and function is fsync:
                        with contextlib.suppress(OSError):  # a folder
                            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments)

            return call

        fsync, rename = os.fsync, os.replace
        os.fsync, os.replace = struck(fsync), struck(rename)

    return prepare


def measure_kills(count: int, seed: int = 0) -> dict:
    """Kill trainings with SIGKILL, at least `count` times at random instants and half as often inside writes, and let them end.

    Each is killed up to nine times, by one way or the other, and started again. It is not told when the signal comes.
    """
    rng, start = random.Random(seed), time.perf_counter()
    Child("timed").wait()
    seconds = time.perf_counter() - start
    result: dict = {"random": {"tried": 0, "survived": 0}, "inside_writes": {"tried": 0, "survived": 0}}
    result |= {"runs": 0, "equal_runs": 0}
    while result["random"]["tried"] < count or result["inside_writes"]["tried"] < count // 2:
        name, struck = f"killed-{result['runs']}", []
        for how in rng.sample(["random"] * 6 + ["inside_writes"] * 3, 9):
            if how == "random":
                child = Child(name)
                child.join(rng.uniform(0, seconds / 3))  # several come before the end
                child.kill()
            else:  # the files at the start have six such calls, a checkpoint three, that of a best epoch six
                child = Child(name, _strike(rng.randint(1, 15), rng.random() < 0.5))
            struck += [how] * (child.wait() == -signal.SIGKILL)
        Child(name).wait()
        equal = helpers.outcome(data_folder() / "runs" / name) == left_alone()
        result["runs"] += 1
        result["equal_runs"] += equal
        for how in struck:
            result[how]["tried"] += 1
            result[how]["survived"] += equal
        print(result, file=sys.stderr)
        shutil.rmtree(data_folder() / "runs" / name)
    return result


# By name: the measurement, and how many are tried.
MEASURES = {"kills": (measure_kills, 200), "pictures": (measure_pictures, 5000), "inputs": (measure_inputs, 5000)}


def main() -> None:
    """The program."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("tests/reliability.py", description=__doc__, formatter_class=form)
    parser.add_argument("--only", nargs="+", default=list(MEASURES), choices=MEASURES, help="leave the others out")
    for name, (_, count) in MEASURES.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"how many (default: {count})")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # before any thread is started: the processes are forks of this one
    start, path = time.perf_counter(), data_folder() / "reliability.json"
    result: dict = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HSNET_DATA"] = folder
        left_alone()
        for name in arguments.only:
            result[name] = MEASURES[name][0](getattr(arguments, name))
    result["seconds"] = round(time.perf_counter() - start, 1)
    runs.write_json(path, result)
    shown = table(result)
    print(shown, f"written to {path}", sep="\n\n")
    if failed := [what for what, tried, well, _ in table_rows(shown)[1:] if tried != well]:
        raise ValueError(f"not withstood: {', '.join(failed)}")


if __name__ == "__main__":
    run_program(main)
