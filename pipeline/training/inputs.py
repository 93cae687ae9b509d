"""The spectrum artifact on a device."""

from collections.abc import Callable
from pathlib import Path

import torch

from models.core.adapter import Spectrum
from pipeline.artifacts import open_array, verify
from pipeline.runs import svd_command

FILES = ("U", "sigma", "V", "mean")


def load_spectrum(directory: Path, device: torch.device | None = None) -> Spectrum:
    """Return the spectrum of an artifact on a device; by default it is mapped from disk. The centred spectrum is read at first
    use.

    Raises UserError for a missing or damaged file.
    """

    def read(folder: Path, load_centred: Callable[[], Spectrum] | None) -> Spectrum:
        files = [(folder / f"{name}.npy").relative_to(directory).as_posix() for name in FILES]
        verify(directory, svd_command(directory.parent.name), files)
        # Mode "c" is copy on write, because torch needs writable memory and the file must not change.
        U, sigma, V, mean = (
            torch.from_numpy(open_array(folder / f"{name}.npy", "svd", "c")).to(device or torch.device("cpu")) for name in FILES
        )
        return Spectrum(U, sigma, V, mean, load_centred)

    return read(directory, lambda: read(directory / "centred", None))
