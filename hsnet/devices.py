"""Which device computes, in which precision, and how much memory it takes."""

import contextlib
import ctypes
import errno
import platform
import re
import sys
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
            raise RuntimeError(f"known are {', '.join(DEVICES)}")
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try --device auto") from error


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the network's arithmetic; "auto" takes what the hardware is fastest in.

    That is bfloat16 where the hardware has it. A CPU without such instructions emulates it, hundreds of times slower than
    float32. A GPU without it that has units for float16 (compute capability 7, from 2017 on) takes that, with a scaled loss.
    Who asks for "float32" gets it on a GPU too, where PyTorch by itself lets convolutions round their factors to 10 bits
    (TF32).
    """
    if precision == "float32":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def describe(device: torch.device) -> str:
    """What ran, for the records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere Python's own words
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


class Memory:
    """The memory in use and its peak: a GPU's, of PyTorch's tensors; on a CPU this process's, of everything.

    Attributes:
        before: bytes in use when this was made.
    """

    def __init__(self, device: torch.device):
        """Forget the peak so far. On a CPU that needs Linux: elsewhere the peak is of the process's whole life."""
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
        try:
            import resource
        except ImportError:  # Windows
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_limits() -> dict[str, tuple[int, int]]:
    """What limits this process's memory under Linux besides the machine's own: (limit, used) in bytes by name.

    "ulimit -d" counts private memory that can be written, "ulimit -v" all addresses, those of libraries too; "cgroup" is
    the limit of a container or a scheduler, and is shared by all of its processes. No limit, no entry.
    """
    limits = {}
    if sys.platform != "linux":
        return limits
    import resource

    status = Path("/proc/self/status").read_text()
    for name, number, field in (
        ("ulimit -d", resource.RLIMIT_DATA, "VmData"),
        ("ulimit -v", resource.RLIMIT_AS, "VmSize"),
    ):
        limit = resource.getrlimit(number)[0]
        if limit != resource.RLIM_INFINITY:
            limits[name] = limit, 1024 * int(re.search(rf"{field}:\s+(\d+)", status)[1])
    with contextlib.suppress(OSError):  # no such file system
        found = _cgroup_limits(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
        if found:
            limits["cgroup"] = min(found, key=lambda pair: pair[0] - pair[1])
    return limits


def _cgroup_limits(membership: str, root: Path) -> list[tuple[int, int]]:
    """(limit, used) of a process's control group and of those around it, of version 2 or 1."""
    found = []
    for line in membership.splitlines():
        _, kind, path = line.split(":", 2)
        if kind == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif kind == "memory":
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / path.strip("/")
        for group in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError, TypeError):  # not there, "max", or without such a line
                limit, used = (int((group / name).read_text()) for name in names[:2])
                # Files that the system keeps in memory, and lets go first.
                used -= int(re.search(rf"^{names[2]} (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)[1])
                if limit < 2**60:  # version 1 says "none" by a huge number
                    found.append((limit, used))
            if group == base:
                break
    return found


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a GPU, or on a CPU under Linux by this process; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and sys.platform == "linux":
        machine = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
        return max(0, min([machine, *(limit - used for limit, used in memory_limits().values())]))
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left. On a CPU PyTorch and oneDNN have no class of their own for that."""
    of_cpu = isinstance(error, RuntimeError) and re.search(
        "DefaultCPUAllocator|could not (create|execute) a|bad_alloc|can't start new thread", str(error)
    )
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or of_system or bool(of_cpu)
