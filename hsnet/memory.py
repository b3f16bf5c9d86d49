"""How much memory a training step takes, from what `python -m kit.memory` (under `book/`) measured, and what takes less.

`bytes_of_step` is the estimate; `explained` turns an error of a training that ran out of memory into one line that names
it and what to do.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .config import Config
from .devices import choose_precision, is_out_of_memory
from .distributed import part_of, world
from .paths import SHIPPED

MEASURED = SHIPPED / "speed" / "memory-cpu.json"
# Of what an episode takes at 256 px, the share that grows with the square of the side, as features do; correlations, the
# rest, grow with its fourth power. From the measured steps of ResNet-50 at 256 and 400 px.
FEATURES = 0.22
# What an episode takes in scoring, which keeps nothing for gradients, as a share of what it takes in training: measured
# 0.36 to 0.89, from EfficientNet-Lite0 to ResNet-50 at 256 px.
SCORING = 0.6
CPU_SCORED = 4  # episodes that a CPU scores at a time: more take memory and gain nothing
# A CPU trains so many episodes at a time that the finest level's first 16 channels, (side / 8)² · (side / 32)² positions
# in float32, take at most 32 MB. More than that the C library takes from the system, and gives back, with every tensor.
CPU_TRAINED = 2**35


def trained_at_a_time(config: Config, device: torch.device) -> int:
    """How many episodes of a step are computed at a time: as the settings say, else on a GPU all, on a CPU `CPU_TRAINED`."""
    begin, end = part_of(config.batch, world() - 1, world())  # the largest share
    most = end - begin if device.type == "cuda" else max(1, CPU_TRAINED // config.size**4)
    return min(config.micro_batch or most, end - begin)


def scored_at_a_time(config: Config, device: torch.device) -> int:
    """How many episodes are scored at a time: as the settings say, else a batch, on a CPU at most `CPU_SCORED`."""
    return config.micro_batch or (min(config.batch, CPU_SCORED) if device.type == "cpu" else config.batch)


def _growth(size):
    return FEATURES * (size / 256) ** 2 + (1 - FEATURES) * (size / 256) ** 4


def bytes_of_step(config: Config, count: float | int, device: torch.device) -> int:
    """About how many bytes a training step takes that computes `count` episodes at a time, beyond what Python takes.

    From the measured step that is nearest: of the same backbone, else of the largest one; of the same precision, else
    float32; of the nearest size, scaled from there.
    """
    half = choose_precision(config.precision, device) != torch.float32
    rows = [row for row in json.loads(MEASURED.read_text())["rows"] if row["recompute"] == config.recompute]
    rows = [row for row in rows if row["backbone"] == config.backbone] or rows
    row = min(rows, key=lambda r: ((r["precision"] != "float32") != half, abs(r["size"] - config.size), -r["each"]))
    return int(row["fixed"] + count * row["each"] * _growth(config.size) / _growth(row["size"]))


def _needed(config, device):
    """Bytes of a training, which scores as well."""
    count = max(trained_at_a_time(config, device), SCORING * scored_at_a_time(config, device))
    return bytes_of_step(config, count, device)


@contextmanager
def explained(config: Config, device: torch.device, checkpoint: Path) -> Iterator[None]:
    """A context in which an out-of-memory error becomes one that names the options that need less.

    Args:
        checkpoint: of the run, written by then or not.

    Raises:
        MemoryError: about how much the training needs, what needs less, and how to resume the run.
    """
    # All is said now: later there may be no memory for it.
    needed = _needed(config, device)
    message = (
        f"out of memory on {device}: training {trained_at_a_time(config, device)} and scoring "
        f"{scored_at_a_time(config, device)} episodes of {config.size} px at a time needs about {needed / 1e9:.2f} GB"
    )
    if device.type == "cuda":
        message += f", and {torch.cuda.mem_get_info(device)[0] / 1e9:.2f} GB were free"
    one = dataclasses.replace(config, micro_batch=1)
    again = dataclasses.replace(one, recompute=True)
    small = dataclasses.replace(again, size=max(32, config.size // 64 * 32))
    smaller = {"": one, " --recompute": again, f" --recompute --size {small.size} and another --name": small}
    less = {what: n for what, setting in smaller.items() if (n := _needed(setting, device)) < 0.99 * needed}
    text = "; ".join(f"--micro-batch 1{what}: about {n / 1e9:.2f} GB" for what, n in less.items())
    message += f". Less is needed with {text or 'no setting'}"
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        saved = f"The run is saved in {checkpoint.parent}" if checkpoint.exists() else "Nothing was saved yet"
        raise MemoryError(f"{message}. {saved}: the same command, with these options, resumes it") from error
