"""Which device computes, in which precision, and how much memory it takes."""

import contextlib
import ctypes
import errno
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

DEVICES = ("cpu", "cuda", "mps", "xpu")


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: a device this machine has not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name.partition(":")[0] not in DEVICES:
            raise RuntimeError(f"known devices: {', '.join(DEVICES)}")
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try --device auto") from error


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the network's arithmetic; "auto" takes what the hardware is fastest in.

    That is bfloat16 where the hardware has it. A CPU without such instructions emulates it, hundreds of times slower than
    float32. A GPU without it that has units for float16 (compute capability 7, from 2017 on) takes that, with a scaled loss.
    """
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def choose_workers(workers: int) -> int:
    """The number of processes that load episodes: two less than PyTorch has threads, 1 to 8."""
    if workers >= 0:
        return workers
    return max(1, min(8, torch.get_num_threads() - 2))


@contextlib.contextmanager
def exact_float32(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Within, "float32" is float32 on a GPU too, where PyTorch by itself lets convolutions round factors to 10 bits (TF32).

    Nothing changes for another `dtype`; afterwards all is as it was.
    """
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends if dtype == torch.float32 else ():
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@contextlib.contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within, networks compute in `dtype`: by autocast, and float32 exactly."""
    with exact_float32(dtype), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def describe(device: torch.device) -> str:
    """What ran, for the records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere Python's own words
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = model[1] if model else platform.processor() or platform.machine()
    count = torch.get_num_threads()
    return f"{name}, {count} thread{'s'[: count != 1]}"


class Memory:
    """The memory in use and its peak: a GPU's, of PyTorch's tensors; on a CPU this process's, of everything, which is
    known under Linux alone: elsewhere 0.

    Attributes:
        before: bytes in use when this was made.
    """

    def __init__(self, device: torch.device):
        """Forget the peak so far."""
        self.device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):  # another C library, or a container that forbids it
                ctypes.CDLL(None).malloc_trim(0)  # give free memory back to the system
                Path("/proc/self/clear_refs").write_text("5")
        self.before = self.peak()

    def peak(self) -> int:
        """The largest number of bytes in use at any time since."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "linux":
            return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
        return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory. On a CPU PyTorch and oneDNN have no class of their own for that."""
    of_cpu = isinstance(error, RuntimeError) and re.search(
        "DefaultCPUAllocator|could not (create|execute) a|bad_alloc|can't start new thread", str(error)
    )
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or of_system or bool(of_cpu)
