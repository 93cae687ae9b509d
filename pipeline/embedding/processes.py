"""The processes of a stage: one, or several that `accelerate launch -m stages.<name>` starts."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from common.errors import UserError
from pipeline.device import environment


class Processes:
    """The rank of this process, the number of processes, the device (a GPU of its own, else the CPU), and communication."""

    def __init__(self) -> None:
        from accelerate import PartialState

        launched = "LOCAL_RANK" in os.environ
        # Gloo on GPUs too: it waits without a limit, and raises at once when another process ends.
        options = {"backend": "gloo", "timeout": timedelta(days=30)} if launched else {}
        state = PartialState(cpu=launched and not torch.cuda.is_available(), **options)
        if launched:
            atexit.register(distributed.destroy_process_group)  # otherwise its threads may crash the interpreter at exit
        self.rank, self.count = state.process_index, state.num_processes
        # Apple's GPUs have no float64.
        self.device = state.device if state.device.type == "cuda" else torch.device("cpu")

    def record(self) -> dict[str, str | int]:
        """Return the number of processes, and the properties of this machine, for the record of a stage."""
        return {"processes": self.count, **environment(self.device)}

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes and prints."""
        return self.rank == 0

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes."""
        with _others_alive():
            for tensor in tensors if self.count > 1 else ():
                distributed.all_reduce(tensor)

    def copy(self, tensor: Tensor, owner: int) -> None:
        """Replace a contiguous tensor by that of process `owner`."""
        with _others_alive():
            if self.count > 1:
                distributed.broadcast(tensor, owner)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank, after all of them have called this. value: anything that can be pickled."""
        values = [value] * self.count
        with _others_alive():
            if self.count > 1:
                distributed.all_gather_object(values, value)
        return values


@contextmanager
def _others_alive() -> Iterator[None]:
    """Raise UserError if another process ended during a communication."""
    try:
        yield
    except RuntimeError:
        raise UserError("another process of this launch ended early; run the same command again") from None
