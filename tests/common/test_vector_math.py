"""The functions of oneMKL are called once before training, so that no first call comes from several threads."""

from pathlib import Path

import pytest

from pipeline.evaluation import evaluate as evaluation
from pipeline.grid import execution
from pipeline.grid.execution import evaluated
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training import loop as training


def test_every_function_is_called_before_training_and_before_testing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for module, name in ((training, "train_run"), (evaluation, "evaluate_run"), (execution, "select_kernels")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, real=real, name=name: (steps.append(name), real(*given))[1])
    evaluated(Run.of(load_params(), adapter="llm_esr"))
    assert steps == ["select_kernels", "train_run", "select_kernels", "evaluate_run"]
