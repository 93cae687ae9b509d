"""The device and precision of a process."""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def select_device() -> torch.device:
    """Return the current GPU if torch finds one, else the CPU; print the choice and its reason."""
    if torch.cuda.is_available():
        device, reason = torch.device("cuda", torch.cuda.current_device()), torch.cuda.get_device_name()
    else:
        count = torch.get_num_threads()
        device, reason = torch.device("cpu"), f"torch finds no GPU; {count} thread{'s' if count > 1 else ''}"
        keep_freed_memory()
    print(f"device: {device.type} ({reason})", flush=True)
    return device


def keep_freed_memory() -> None:
    """Let this process keep freed memory blocks of up to 32 MiB for reuse, if its C library is GNU's.

    By default, that library returns them to the kernel at once and requests them again page by page, which takes a tenth of a
    training step on a CPU.
    """
    with suppress(OSError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that it accepts
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def training_precision(name: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that returns the context for a training step with precision `name`.

    If the device has no such precision, a line says so. tf32 applies to all float32 matrix products of this process on the GPU,
    including those of rankings.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        major, _ = torch.cuda.get_device_capability(device)
        if name != "float32" and major < 8:
            print(f"precision: this GPU has no fast {name} (compute capability {major}, 8 is needed)", flush=True)
    elif name == "tf32":
        print("precision: float32 (train.precision is tf32, which is a GPU's)", flush=True)
    return partial(torch.autocast, device.type, torch.bfloat16) if name == "bfloat16" else nullcontext


def environment(device: torch.device) -> dict[str, str | int]:
    """Return the properties of this machine that a run's numbers depend on: device, threads, and versions of Python and torch."""
    import platform

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
