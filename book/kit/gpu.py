"""What a GPU does in a few minutes: passes, their stages, and short trainings. On a CPU the same, to try the program itself.

    PYTHONPATH=book python -m kit.gpu                plain, figure and compiled in each precision, in 8 minutes of a GPU

Contenders: "plain" is `hsnet/naive.py`; "figure" the network as a GPU computes it; "compiled" the same by PyTorch's
compiler. Each result is written to data/speed/DEVICE-BACKBONE-gpu.json as soon as it is measured. A line names each
measurement for which time does not suffice.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from hsnet.config import Config, run_program
from hsnet.devices import Memory, choose_device, is_out_of_memory
from hsnet.engine import Learner
from hsnet.fast.compiling import compile_network
from hsnet.fast.machine import few_operations
from hsnet.optim import Clock
from hsnet.paths import data_folder
from hsnet.runs import write_json
from hsnet.speed.measure import Bench, about, compare, machine_limits, measure_stages, take_turns

from .speed import code_digest, gpu_report

# What comes first matters most: time may not suffice for the rest.
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "TF32": torch.float32, "float16": torch.float16}
PATHS = ("plain", "figure", "compiled")
WORK = (("training step", 20), ("1-shot", 1), ("5-shot", 1), ("training step", 4))  # and its batch
NEEDED = {"plain": 2.0, "figure": 2.0, "compiled": 60.0}  # seconds without which a measurement is not begun


def measure_gpu(
    path: Path,
    device: torch.device,
    backbone: str = "resnet50",
    size: int = 400,
    *,
    minutes: float | int = 8.0,
    training_minutes: float | int = 1.0,
    work: tuple[tuple[str, int], ...] = WORK,
    precisions: tuple[str, ...] = tuple(PRECISIONS),
    paths: tuple[str, ...] = PATHS,
    repetitions: int = 10,
    benchmark: str = "emoji",
) -> dict:
    """Measure as much as `minutes` allow, and return what the JSON file `path` holds at the end.

    Args:
        training_minutes: of a short training in each precision, which come last; their time is kept for them.
        work: what is measured, and on how many episodes.
        precisions, paths: keys of `PRECISIONS`, and some of `PATHS`.
        benchmark: of the trainings.
    """
    end, trained = time.monotonic() + 60 * minutes, [name for name in precisions if name != "TF32"]
    result = {**about(device), "code": code_digest(), "backbone": backbone, "size": size, "repetitions": repetitions}
    result |= {"limits": {}, "passes": [], "stages": [], "trainings": [], "skipped": []}

    def keep(kind: str, row: dict, seconds: float | int, measured: Callable[[], dict]):
        """Add a row to the file, or a line that says that there was no time for it."""
        reserved = 60 * training_minutes * len(trained) * (kind != "trainings")
        if time.monotonic() + seconds > end - reserved:
            result["skipped"].append(", ".join(map(str, row.values())))
        else:
            result[kind].append(row | measured())
        write_json(path, result)

    bench = Bench(backbone, size, device, batch=max(batch for _, batch in work))
    for way, name in product(paths, precisions):  # the compiler last: it takes longest
        if way == "compiled" and name == precisions[0]:
            compile_network(bench.fast)
        with precision(name, device), few_operations():
            if name not in result["limits"]:
                (result["limits"][name],) = machine_limits(device, [PRECISIONS[name]], repetitions).values()
            for what, batch in work:
                run = partial(bench.run, what, "plain" if way == "plain" else "fast", PRECISIONS[name], batch)
                row = {"what": what, "batch": batch, "path": way, "precision": name}
                keep("passes", row, NEEDED[way], partial(measure_one, run, way, device, repetitions))
            if way == "figure":
                stages = lambda: {"rows": measure_stages(bench, repetitions)}  # noqa: E731
                keep("stages", {"what": "stages", "precision": name}, NEEDED[way], stages)
    del bench
    gc.collect()
    for name in trained:
        learnt = partial(learn, name, benchmark, device, training_minutes)
        keep("trainings", {"precision": name}, 60 * training_minutes, learnt)
    return result


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Within, computations are in a precision of `PRECISIONS`."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = name == "TF32"
    try:
        with torch.autocast(device.type, PRECISIONS[name], enabled=PRECISIONS[name] != torch.float32):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def measure_one(run: Callable[[], object], way: str, device: torch.device, repetitions: int) -> dict:
    """Seconds, operations and peak memory of one piece of work; `seconds` is None where memory does not suffice."""
    memory, start = Memory(device), time.perf_counter()
    try:
        run()
    except RuntimeError as error:
        if is_out_of_memory(error):
            return {"seconds": None}
        raise
    found = {"first_seconds": time.perf_counter() - start, "bytes": memory.peak() - memory.before}
    if way == "compiled":  # whose operations nobody sees
        return found | {"seconds": take_turns({way: run}, repetitions, way)[way]}
    return found | compare({way: run}, repetitions, way)[way]


def learn(name: str, benchmark: str, device: torch.device, minutes: float | int) -> dict:
    """A short training with the settings of an embedded benchmark: its steps, and the mean loss of every 25 of them."""
    config = Config(benchmark=benchmark, precision=name, minutes=minutes, device=str(device), epochs=10**6)
    learner, clock = Learner(replace(config, epoch_episodes=25 * config.batch)), Clock(config)
    losses, steps = [], 0
    while clock.progress(learner.epoch) < 1:
        learner.train_one_epoch(clock, lambda: False, lambda: None)
        if learner.step:
            losses.append(learner.losses / learner.step)
        steps += learner.step
        learner.end_epoch()
    return {"steps": steps, "seconds": clock.seconds(), "losses": losses, "batch": config.batch, "size": config.size}


def main() -> None:
    """The program."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m kit.gpu", description=__doc__, formatter_class=form)
    parser.add_argument("--backbone", default="resnet50", help="backbone (default: resnet50)")
    parser.add_argument("--size", type=int, default=400, help="side of the images in pixels (default: 400)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit (default: 8)")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    path = data_folder() / "speed" / f"{device.type}-{arguments.backbone}-gpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = measure_gpu(path, device, arguments.backbone, arguments.size, minutes=arguments.minutes)
    print(f"{gpu_report(result)}\n\nwritten to {path}")


if __name__ == "__main__":
    run_program(main)
