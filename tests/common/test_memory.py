"""Which exceptions say that memory is out."""

import errno

import pytest
import torch

from common.memory import out_of_memory


class ArrayMemoryError(Exception):
    """As NumPy's, which is private."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("Cannot allocate memory (os error 12)"),  # safetensors
        OSError("Cannot allocate memory (os error 12)"),  # polars, without errno
        RuntimeError("std::bad_alloc"),
        ArrayMemoryError("Unable to allocate 7 GiB"),
    ],
)
def test_these_do(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.ENOSPC, "No space left on device"), KeyError("memory")])
def test_others_do_not(error: Exception) -> None:
    assert not out_of_memory(error)
