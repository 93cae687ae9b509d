"""The functions of oneMKL are called once before training, so that no first call comes from several threads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from common.vector_math import select_kernels
from pipeline.evaluation import evaluate as evaluation
from pipeline.grid import execution
from pipeline.grid.execution import evaluated
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training import loop as training


class Calls(TorchFunctionMode):
    """Records the names of torch's functions that are called, with the type of their first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[str, torch.dtype]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            self.made.add((func.__name__, args[0].dtype))
        return func(*args, **(kwargs or {}))


def test_the_functions_of_losses_activations_and_adapters_are_called_in_both_precisions() -> None:
    with Calls() as calls:
        select_kernels()
    used = {"cos", "erf", "exp", "expm1", "log", "log1p", "sin", "sqrt", "tanh"}
    assert {(name, dtype) for name in used for dtype in (torch.float32, torch.float64)} <= calls.made


def test_every_function_is_called_before_training_and_before_testing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for module, name in ((training, "train_run"), (evaluation, "evaluate_run"), (execution, "select_kernels")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, real=real, name=name: (steps.append(name), real(*given))[1])
    evaluated(Run.of(load_params(), adapter="llm_esr"))
    assert steps == ["select_kernels", "train_run", "select_kernels", "evaluate_run"]
