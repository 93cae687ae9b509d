"""What a grid still has to do, as tasks: each runs in its own process, with its result in scratch and its output in a log."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.artifacts import scratch
from pipeline.grid.cells import Cell, listed_cells
from pipeline.grid.execution import evaluated_directory
from pipeline.grid.fit import refuse_unfit
from pipeline.grid.tuning import SPACE, Tuning, listed_tunings
from pipeline.params import Params
from pipeline.runs import Run


@dataclass(frozen=True)
class Task:
    """A task: `python -m` with `command`, which reads `inputs` and writes `result`, a directory in scratch.

    Tasks are idempotent, and resume after an interruption if their files in scratch still exist.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    result: Path

    @property
    def log(self) -> Path:
        """The file of the task's output."""
        return scratch() / "logs" / f"{self.name.replace(' ', '-')}.log"


def training_task(run: Run, cell: Cell, params: Params) -> Task:
    """Return the task that trains and tests a run of a cell."""
    command = ["stages.prepare", run.dataset, run.backbone, run.adapter, "--seed", str(run.seed)]
    if cell.loss:
        command += ["--tuned", cell.loss]
    else:
        command += ["--dim", str(run.dim)]
        if variant := run.settings["adapter"].get("variant"):
            command += ["--variant", variant]
    inputs = [run.sequences, run.spectrum]
    if tuning := cell.tuning(params):
        inputs += [tuning.file, SPACE]
    name = f"{run.name} tuned {cell.loss}" if cell.loss else run.name
    return Task(name, tuple(command), tuple(inputs), run.scratch)


def tuning_task(tuning: Tuning) -> Task:
    """Return the task that runs the missing trials and second runs of a tuning."""
    run = tuning.run({})
    inputs = [run.sequences, run.spectrum, SPACE, *([tuning.scratch] if tuning.scratch.is_dir() else [])]
    return Task(f"{tuning.name} tuning", tuning.arguments, tuple(inputs), tuning.scratch)


def unfinished_tasks(params: Params) -> list[Task]:
    """Return the tasks of tunings that have trials to run, and of runs that are not in a cell, in scratch or published.

    Left out are runs whose settings are still to be tuned, and tunings whose trials are done, with or without a choice
    (`complete.write_choices` writes those). Raises UserError if inputs are missing.
    """
    tunings = [tuning for tuning in listed_tunings(params) if not (tuning.has_choice or tuning.trials_done)]
    tasks = {tuning.name: tuning_task(tuning) for tuning in tunings}
    for cell, run in unfinished_runs(params):
        tasks[run.fingerprint] = training_task(run, cell, params)
    return list(tasks.values())


def unfinished_runs(params: Params) -> list[tuple[Cell, Run]]:
    """Return the runs that are not in a cell of today's settings, in scratch or published, each once, with the first such cell.

    Runs whose settings are still to be tuned are left out. Raises UserError if inputs are missing.
    """
    found: dict[str, tuple[Cell, Run]] = {}
    for cell in listed_cells(params.grid):
        tuning = cell.tuning(params)
        if (tuning is None or tuning.has_choice) and not (cell.exists and not cell.differs(params)):
            for run in cell.runs(params):
                if run.fingerprint not in found and evaluated_directory(run) is None:
                    found[run.fingerprint] = (cell, run)
    return list(found.values())


def check_fit(params: Params) -> None:
    """Raise UserError if runs that are still to be made cannot be built with their dim, before any of them is trained."""
    runs: dict[str, list[Run]] = {}
    for tuning in listed_tunings(params):
        if not tuning.has_choice:
            runs.setdefault("grid.dim", []).append(tuning.run({}))
    for cell, run in unfinished_runs(params):
        if run.seed == params.grid.seeds[0]:  # another seed has the same model
            runs.setdefault(cell.dim_option, []).append(run)
    for option, planned in runs.items():
        refuse_unfit(option, planned)


class Engine(Protocol):
    """Executes tasks: `pipeline.grid.local.Local` on this machine, `pipeline.grid.cluster.Cluster` on a cluster."""

    @property
    def jobs(self) -> int:
        """The number of tasks that run at a time."""

    @property
    def threads(self) -> int:
        """The number of threads of a task."""

    def submitting(self) -> AbstractContextManager[Callable[[Task], Future[bool]]]:
        """Yield a function that submits a task; the result of its future is whether the task succeeded."""
