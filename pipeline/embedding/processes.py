"""The processes of one launch: one, or those that `accelerate launch -m stages.<name>` starts."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from common.errors import UserError


class Processes:
    """Which of them this one is, the device it works on (its GPU, else the CPU), and how they talk."""

    def __init__(self) -> None:
        from accelerate import PartialState

        launched = "LOCAL_RANK" in os.environ
        # Gloo, on GPUs too: it waits as long as it takes, and notices at once when another process ends.
        options = {"backend": "gloo", "timeout": timedelta(days=30)} if launched else {}
        state = PartialState(cpu=launched and not torch.cuda.is_available(), **options)
        if launched:
            atexit.register(distributed.destroy_process_group)  # or its threads may abort the interpreter's exit
        self.rank, self.count = state.process_index, state.num_processes
        # Apple's GPUs know no float64.
        self.device = state.device if state.device.type == "cuda" else torch.device("cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes."""
        with _others_alive():
            for tensor in tensors if self.count > 1 else ():
                distributed.all_reduce(tensor)

    def copy(self, tensor: Tensor, owner: int) -> None:
        """Replace a contiguous tensor by the one of process `owner`."""
        with _others_alive():
            if self.count > 1:
                distributed.broadcast(tensor, owner)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value (anything picklable), by rank; none goes on before all have come here."""
        values = [value] * self.count
        with _others_alive():
            if self.count > 1:
                distributed.all_gather_object(values, value)
        return values


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise UserError("another process of this launch has ended early; start the same command again") from None
