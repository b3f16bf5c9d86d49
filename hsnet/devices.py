"""Which device computes, and in which precision."""

import platform

import torch


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: a device this machine has not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try --device auto") from error


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the network's arithmetic; "auto" takes bfloat16 where the hardware computes in it.

    A CPU without such instructions emulates it, hundreds of times slower than float32. Who asks for "float32" gets it on a
    GPU too, where PyTorch by itself lets convolutions round their factors to 10 bits (TF32).
    """
    if precision == "float32":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, precision)


def describe(device: torch.device) -> str:
    """What ran, for the records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
