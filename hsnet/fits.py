"""Which setting fits where memory was short: smaller ones are tried until one does.

Each is tried in a process of its own, `python -m hsnet.train --rehearse …`, which inherits the limits that this one is
under (`ulimit -d`, `ulimit -v`, a container's). What a failed attempt leaves behind in a process, memory in pieces and what
libraries keep, would decide there whether a smaller one fits.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator

from tqdm import tqdm

from .config import RANGES, Config
from .devices import is_out_of_memory, memory_limits

NO_ROOM = 76  # exit status of a rehearsal whose memory did not suffice
# Of what a limit leaves, what a rehearsal does without, as a share and in bytes: a training of days comes to need a little more
# than two steps, for its memory falls to pieces, and what each thread takes for itself differs from start to start.
SPARE, SPARE_BYTES = 0.1, 50_000_000
# Memory that libraries miss where Python cannot be told: their last words.
_LAST_WORDS = re.compile("memory|bad_alloc|thread creation|start new thread|failed to map", re.IGNORECASE)


def smaller(config: Config, few: int) -> Iterator[tuple[str, Config]]:
    """Settings in the order in which they are to be preferred, as a command line gives them.

    First what changes nothing but the time, then smaller pictures.

    Args:
        few: how many episodes at a time did not fit.
    """
    halves = [few // 2**i for i in range(few.bit_length())]
    for recompute in (False, True):
        for n in halves if recompute else halves[1:]:
            if (n, recompute) != (few, config.recompute) and recompute >= config.recompute:
                setting = f"--micro-batch {n}" + " --recompute" * recompute
                yield setting, dataclasses.replace(config, micro_batch=n, recompute=recompute)
    size, least = config.size, RANGES["size"][0]
    while size > least:
        size = max(least, 3 * size // 4 // least * least)
        setting = f"--size {size} --micro-batch 1 --recompute"
        yield setting, dataclasses.replace(config, size=size, micro_batch=1, recompute=True)


def what_fits(config: Config, few: int, device: str, begun: bool) -> str:
    """What to tell a user whose training found too little memory: the first smaller setting that fits, as was tried.

    Args:
        config: of the training; its `device` is this process's.
        few: how many episodes at a time did not fit.
        begun: whether the run has a checkpoint, so that its pictures' size cannot change.
    """
    message = f"out of memory on {device} with {few} episode{'s'[: few != 1]} of {config.size} px at a time"
    tried = tqdm(smaller(config, few), desc="out of memory: trying smaller settings", unit="setting", leave=False)
    with contextlib.closing(tried):
        for setting, candidate in tried:
            tried.set_postfix_str(setting)
            trouble = _rehearse(candidate)
            if trouble is None:
                continue
            if trouble:
                return f"{message}. Smaller settings could not be tried ({trouble}): give {setting}, and less if it must be"
            if candidate.size == config.size:
                return (
                    f"{message}. {setting} fits, as was just tried, and changes nothing else: the same command with it "
                    "goes on"
                )
            other = f" and another --name: this run is of {config.size} px" if begun else ""
            return (
                f"{message}, and a single one with --recompute does not fit either. {setting} fits, as was just tried: "
                f"start the same command with it{other}"
            )
    limits = [f"{limit / 1e9:.2f} GB by {name}" for name, (limit, _) in memory_limits().items()]
    limited = f" (limited to {', '.join(limits)})" if limits else ""
    return (
        f"{message}, and no smaller setting fits with a little to spare, down to {RANGES['size'][0]} px: it needs more "
        f"memory{limited}"
    )


def _rehearse(config):
    """Whether a setting fits: "" if it does, None if it does not, else why that could not be seen."""
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "MASTER_ADDR")}  # not torchrun's
    command = [sys.executable, "-m", "hsnet.train", "--rehearse", config.as_json()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=alone)
    except OSError as error:
        return None if is_out_of_memory(error) else str(error)
    words = done.stderr.strip()
    if done.returncode in (0, NO_ROOM):
        return "" if done.returncode == 0 else None
    if done.returncode < 0 or _LAST_WORDS.search(words):  # killed by the system, or a library that gave up
        return None
    return words.splitlines()[-1] if words else f"status {done.returncode}"


def spare() -> None:
    """Lower the limits of this process a little; see `SPARE`."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = memory_limits()
    for name, number in (("ulimit -d", resource.RLIMIT_DATA), ("ulimit -v", resource.RLIMIT_AS)):
        if name in limits:
            limit, used = limits[name]
            left = max(0, limit - used)
            lower = limit - min(left, int(SPARE * left) + SPARE_BYTES)
            resource.setrlimit(number, (lower, resource.getrlimit(number)[1]))
