"""The estimate of the grid's time, and the line with which the grid says it before the first run."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from pipeline.grid import complete, estimate
from pipeline.grid.estimate import duration, epoch_seconds
from pipeline.grid.local import Local
from pipeline.grid.tasks import Engine, Task
from pipeline.grid.tuning import SPACE
from pipeline.params import load_params
from pipeline.runs import Run

ROOT = Path(__file__).parents[3]
SetParams = Callable[[dict[str, Any]], None]


@pytest.mark.usefixtures("project")
def test_an_epoch_takes_about_as_long_as_the_training_of_a_run_says() -> None:
    """Within a factor of 5: machines are busy."""
    import torch

    from pipeline.grid.execution import trained

    run = Run.of(load_params())
    measured = json.loads((trained(run) / "run.json").read_text())["seconds_per_epoch"]
    assert measured / 5 < epoch_seconds(run, torch.device("cpu")) < measured * 5


@pytest.mark.parametrize(
    ("jobs", "at_a_time", "shortest", "longest"),
    # Two runs of 4 s and two of 9 s an epoch: 26 s for an epoch of each, for 3 epochs (patience + 1) and for 10.
    [(1, 1, "78 seconds", "5 minutes"), (2, 2, "39 seconds", "3 minutes"), (8, 4, "20 seconds", "65 seconds")],
)
def test_the_estimate_adds_up_epochs_of_all_runs_over_the_jobs(
    set_params: SetParams, monkeypatch: pytest.MonkeyPatch, jobs: int, at_a_time: int, shortest: str, longest: str
) -> None:
    set_params({"train.epochs": 10, "train.patience": 2})
    monkeypatch.setattr(estimate, "epoch_seconds", lambda run, device: {"base": 4.0, "spectran": 9.0}[run.adapter])
    said = estimate.estimate(load_params(), jobs)
    assert said.startswith(
        f"4 runs, {at_a_time} at a time: training alone takes {shortest} if each stops after 3 epochs, "
        f"{longest} if each takes all 10; start-up and testing are extra"
    )


def test_more_jobs_do_not_shorten_a_tuning(set_params: SetParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs follow one another: two trials, and two under a second seed, of 9 s an epoch."""
    SPACE.parent.mkdir()
    SPACE.write_text("train:\n  weight_decay: [0.0, 0.1]\n")
    tuning = {"datasets": ["tiny"], "backbones": ["sasrec"], "losses": ["info_nce"], "trials": 2}
    set_params({"train.epochs": 10, "train.patience": 2} | {f"grid.tuning.{name}": value for name, value in tuning.items()})
    monkeypatch.setattr(estimate, "epoch_seconds", lambda run, device: {"base": 4.0, "spectran": 9.0}[run.adapter])
    said = estimate.estimate(load_params(), 100)
    assert said.startswith(f"16 runs, 10 at a time: training alone takes {duration(4 * 9 * 3)} if each stops after 3 epochs")


def test_a_run_of_two_tables_is_counted_once(set_params: SetParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 4 has the dim of Table 2 too."""
    dimensions = {"datasets": ["tiny"], "backbones": ["sasrec"], "adapters": ["base"], "dims": [8, 16]}
    set_params({"grid.dimensions": dimensions})
    monkeypatch.setattr(estimate, "epoch_seconds", lambda run, device: 1.0)
    assert estimate.estimate(load_params(), 1).startswith("6 runs"), "2 seeds of base and SpecTran with dim 16, of base with 8"


@pytest.mark.usefixtures("project")
def test_cells_of_other_settings_are_counted_as_missing(set_params: SetParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is there lacks the runs of a new seed, and all of them once an option of training has changed."""
    from pipeline.grid.cells import listed_cells
    from pipeline.grid.execution import build_cell

    monkeypatch.setattr(estimate, "epoch_seconds", lambda run, device: 1.0)
    set_params({"grid.adapters": ["base"], "grid.seeds": [0]})
    for cell in listed_cells(load_params().grid):
        build_cell(cell, load_params())
    assert estimate.estimate(load_params(), 1) == "every run of the grid exists; nothing to train"
    set_params({"grid.seeds": [0, 1, 2]})
    assert estimate.estimate(load_params(), 1).startswith("2 runs")
    set_params({"train.learning_rate": 0.5})
    assert estimate.estimate(load_params(), 1).startswith("3 runs")


@pytest.mark.parametrize("loss", ["info_nce", "cross_entropy"])
def test_a_run_under_another_loss_is_measured_under_it(set_params: SetParams, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    tuning = {"datasets": ["tiny"], "backbones": ["sasrec"], "losses": [loss], "trials": 1, "seed": 4}
    SPACE.parent.mkdir()
    SPACE.write_text("train:\n  weight_decay: [0.0, 0.1]\n")
    set_params({"grid.tuning": tuning, "grid.adapters": ["base"], "grid.seeds": [0]})
    asked: list[str] = []
    monkeypatch.setattr(estimate, "epoch_seconds", lambda run, device: asked.append(run.settings["train"]["loss"]) or 1.0)
    assert estimate.estimate(load_params(), 1).startswith("4 runs"), "a trial, its second seed, the tuned and the default cell"
    assert set(asked) == {"info_nce", loss}


def test_the_grid_says_before_the_first_run_how_long_it_will_take(
    set_params: SetParams, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of so many epochs that every machine needs hours, although the seconds of an epoch are printed to a hundredth."""
    set_params({"train.epochs": 10**7, "train.patience": 10**6 - 1})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(complete, "assemble", lambda params, quiet=False: False)

    def none_succeeds(todo: list[Task], engine: Engine) -> list[Task]:
        subprocess.run(["echo", "the first run begins"], check=True)
        for task in todo:
            task.log.parent.mkdir(parents=True, exist_ok=True)
            task.log.write_text("epoch 1 of 10\nprepare: the disk is full\n")
        return todo

    monkeypatch.setattr(complete, "run_all", none_succeeds)
    reason = (
        r"4 of 4 tasks failed; the first, tiny-sasrec-base dim 16 seed 0: prepare: the disk is full \(.*\.log\); after fixing"
    )
    with pytest.raises(UserError, match=reason):
        complete.complete(load_params(), Local(2))
    before = capfd.readouterr().out.partition("the first run begins")[0]
    lines = re.findall(r"^tiny-sasrec-(\w+) dim 16: (.+) s an epoch, 2 runs$", before, re.MULTILINE)
    epochs = {name: float(seconds) for name, seconds in lines}
    assert epochs.keys() == {"base", "spectran"}
    expected = (
        r"^check: 4 runs, 2 at a time: training alone takes (.+) hours if each .* 1000000 epochs, (.+) hours if each .* 10000000;"
    )
    line = re.search(expected, before, re.MULTILINE)
    assert line, before
    shortest, longest = (float(hours) for hours in line.groups())
    of_an_epoch = 2 * sum(epochs.values()) / 2  # two runs of each method, two at a time
    rounding = 2 * 2 * 0.005 / 2
    assert longest == pytest.approx(of_an_epoch * 10**7 / 3600, abs=rounding * 10**7 / 3600 + 0.1)
    assert shortest == pytest.approx(longest / 10, abs=0.1)


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.2, 1.1, 89, 91, 5399, 5401)] == [
        "1 second",
        "2 seconds",
        "89 seconds",
        "2 minutes",
        "90 minutes",
        "1.5 hours",
    ]


def test_the_estimate_names_every_adapter_that_does_not_fit(set_params: SetParams) -> None:
    set_params({"grid.dim": 40, "grid.adapters": ["alphafuse", "base", "spectran"]})
    with pytest.raises(UserError, match=r"^nothing was trained: alphafuse, spectran on tiny cannot be built; .*grid\.dim <= 24"):
        estimate.estimate(load_params(), 1)
