"""The estimate of the grid's time."""

import json

import pytest

from pipeline.grid.estimate import duration, epoch_seconds
from pipeline.params import load_params
from pipeline.runs import Run


@pytest.mark.usefixtures("project")
def test_an_epoch_takes_about_as_long_as_the_training_of_a_run_says() -> None:
    """Within a factor of 5: machines are busy."""
    import torch

    from pipeline.grid.execution import trained

    run = Run.of(load_params())
    measured = json.loads((trained(run) / "run.json").read_text())["seconds_per_epoch"]
    assert measured / 5 < epoch_seconds(run, torch.device("cpu")) < measured * 5


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.2, 89, 91, 5399, 5401)] == [
        "1 seconds",
        "89 seconds",
        "2 minutes",
        "90 minutes",
        "1.5 hours",
    ]
