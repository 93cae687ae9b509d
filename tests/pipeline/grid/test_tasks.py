"""Tasks: what a grid still has to do, and in which order."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.grid import tuning as module
from pipeline.grid.tasks import unfinished_tasks
from pipeline.grid.tuning import SPACE, listed_tunings, tune, write_choice
from pipeline.params import load_params
from pipeline.runs import Run


@pytest.mark.usefixtures("project")
def test_tunings_come_first_then_the_runs_that_depend_on_them(
    set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that depend on no tuning do not wait. Listing tasks writes no choice."""
    SPACE.parent.mkdir(exist_ok=True)
    SPACE.write_text("train:\n  weight_decay: [0.0, 1.0e-4]\n")
    lists = {"datasets": ["tiny"], "losses": ["info_nce"], "trials": 2}
    set_params({f"grid.tuning.{name}": value for name, value in lists.items()})
    params = load_params()

    def validation(run: Run) -> dict[str, Any]:
        return {"state": "complete", "epochs": 3, "validation": 0.1 + run.settings["train"]["weight_decay"]}

    monkeypatch.setattr(module, "_validation", validation)

    def names() -> list[str]:
        return [task.name for task in unfinished_tasks(params)]

    tunings = [f"tiny-sasrec-{adapter}-info_nce tuning" for adapter in ("base", "spectran")]
    plain = [f"tiny-sasrec-{adapter} dim 16 seed {seed}" for adapter in ("base", "spectran") for seed in (0, 1)]
    assert names() == tunings + plain
    base = listed_tunings(params)[0]
    tune(base)
    assert names() == tunings[1:] + plain
    assert not base.file.exists()
    write_choice(base)
    assert names() == tunings[1:] + plain + [f"tiny-sasrec-base dim 16 seed {seed} tuned info_nce" for seed in (0, 1)]
