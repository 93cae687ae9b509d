"""Which device work runs on, chosen once, with the reason printed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch


def select_device() -> torch.device:
    """The first GPU where torch finds one, else the CPU."""
    if torch.cuda.is_available():
        device, reason = torch.device("cuda", torch.cuda.current_device()), torch.cuda.get_device_name()
    else:
        device, reason = torch.device("cpu"), f"torch finds no GPU; {torch.get_num_threads()} threads"
    print(f"device: {device.type} ({reason})", flush=True)
    return device


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
