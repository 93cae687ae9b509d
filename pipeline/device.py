"""Which device work runs on, chosen once, with the reason printed."""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def select_device() -> torch.device:
    """The first GPU where torch finds one, else the CPU."""
    if torch.cuda.is_available():
        device, reason = torch.device("cuda", torch.cuda.current_device()), torch.cuda.get_device_name()
    else:
        device, reason = torch.device("cpu"), f"torch finds no GPU; {torch.get_num_threads()} threads"
        keep_freed_memory()
    print(f"device: {device.type} ({reason})", flush=True)
    return device


def keep_freed_memory() -> None:
    """Let this process keep blocks of up to 32 MiB that it frees, where its C library is GNU's.

    That one gives them back to the kernel at once and gets them anew, page by page: a tenth of a step's time on a CPU.
    """
    with suppress(OSError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def training_precision(name: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What to run a training step under, for `train.precision`; the reason printed where it is not what the name says.

    tf32 sets how this process multiplies float32 matrices on the GPU, in rankings too.
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
    """What a run's figures depend on besides its inputs."""
    import platform

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
