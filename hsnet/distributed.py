"""Several processes that train one network: rank, sums, and what happens when one of them ends.

    torchrun --nproc-per-node 4 -m hsnet.train

starts them; with a single process everything here does nothing. Each process computes the gradients of its part of a
batch, and one `all_reduce` a step sums them and the few numbers on which processes must agree: see `Message`. PyTorch's
`DistributedDataParallel` is not used: it averages what processes compute, where the loss here is a mean over all pixels of
the batch; it needs every process to call the model equally often, where the last batch of an epoch may leave some without
an episode; and what it gains, sending gradients while others are computed, is nothing for ten megabytes a step.
"""

import os
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as processes

# How long a process waits for another one. One that has died is noticed at once; this is for one that hangs.
PATIENCE = timedelta(minutes=30)


def rank() -> int:
    """The number of this process, from 0."""
    return processes.get_rank() if _several() else 0


def world() -> int:
    """The number of processes."""
    return processes.get_world_size() if _several() else 1


def _several() -> bool:
    return processes.is_available() and processes.is_initialized()


@contextmanager
def process_group(device: str):
    """Join the processes that `torchrun` has started; alone without it. Yields the name of this process's device.

    Args:
        device: as in `devices.choose_device`; "auto" and "cuda" give each process of a machine a GPU of its own.

    Raises:
        ConnectionError: another process has ended, or did not come.
        ValueError: more processes than GPUs on this machine.
    """
    if not {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys() or _several():
        yield device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device == "auto" and not torch.cuda.is_available():
        device = "cpu"
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"device is {device!r}: {os.environ['LOCAL_WORLD_SIZE']} processes on a machine with "
                f"{torch.cuda.device_count()} GPUs: start at most one process per GPU (torchrun --nproc-per-node)"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    with _others():
        processes.init_process_group(backend, timeout=PATIENCE)
    yield device
    processes.destroy_process_group()  # not after an error: another process may wait for this one to end


@contextmanager
def _others():
    """What waits for other processes: an error names the cause in one line."""
    try:
        yield
    except RuntimeError as error:
        where = f"process {rank()} of {world()}"
        raise ConnectionError(
            f"{where}: another process has ended, so this one stops too ({str(error).splitlines()[0][:200]}). Its message "
            "gives the reason; the same command, with any number of processes, resumes from the last checkpoint"
        ) from error


class Message:
    """What processes tell each other in a training step, in one float32 tensor on the device: sums over them.

    Each parameter's `grad` becomes a view of it: backward passes add up there, and nothing is copied to be sent.

    Attributes:
        gradients, numbers: the two parts of `content`, flat; the following are views of the numbers.
        areas: classes 4, see `SegmentationScore.areas`; exact up to 2²⁴ pixels.
        loss, divisor: sums over pixels; `all_reduce` divides gradients and loss by the divisor.
        sound, stop, seconds: whether the step is sound; how many processes were asked to stop; the first one's clock.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], classes: int):
        parameters = list(parameters)
        sizes = [p.numel() for p in parameters]
        self.content = torch.zeros(sum(sizes) + 4 * classes + 5, device=parameters[0].device)
        self.gradients, self.numbers = self.content.split([sum(sizes), 4 * classes + 5])
        self.areas = self.numbers[:-5].view(classes, 4)
        self.loss, self.divisor, self.sound, self.stop, self.seconds = self.numbers[-5:]
        for p, part in zip(parameters, self.gradients.split(sizes), strict=True):
            p.grad = part.as_strided(p.shape, p.stride())  # optimizers want the memory order of the parameter

    def all_reduce(self) -> None:
        """Sum over all processes, then divide gradients and loss, all in place."""
        if _several():
            with _others():
                processes.all_reduce(self.content)
        self.gradients /= self.divisor
        self.loss /= self.divisor


def all_gather(rows: list) -> list:
    """The rows of items that were dealt to the processes in turn (`items[rank::world]`), in the items' order again."""
    if not _several():
        return rows
    dealt: list[list] = [[]] * world()
    with _others():
        processes.all_gather_object(dealt, rows)
    return [part[i] for i in range(max(map(len, dealt))) for part in dealt if i < len(part)]


def broadcast(value):
    """The first process's value, in all of them."""
    if not _several():
        return value
    values = [value]
    with _others():
        processes.broadcast_object_list(values)
    return values[0]


def say(text: str) -> None:
    """Print a line, in the first process alone."""
    if rank() == 0:
        print(text, flush=True)


def part_of(count: int, number: int, of: int) -> tuple[int, int]:
    """Begin and end of one of `of` shares of `count` neighbours, as equal as can be.

    Example:
        >>> [part_of(7, r, 3) for r in range(3)]
        [(0, 2), (2, 4), (4, 7)]
    """
    return count * number // of, count * (number + 1) // of
