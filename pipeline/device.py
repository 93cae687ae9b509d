"""Which device work runs on, chosen once, with the reason printed."""

import torch


def select_device() -> torch.device:
    """The first GPU where torch finds one, else the CPU."""
    if torch.cuda.is_available():
        device, reason = torch.device("cuda", torch.cuda.current_device()), torch.cuda.get_device_name()
    else:
        device, reason = torch.device("cpu"), f"torch finds no GPU; {torch.get_num_threads()} threads"
    print(f"device: {device.type} ({reason})", flush=True)
    return device


def environment(device: torch.device) -> dict[str, str | int]:
    """What a run's figures depend on besides its inputs."""
    import platform

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
