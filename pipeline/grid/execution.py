"""Runs found in scratch, or made: the one place that decides whether there is anything to train or test.

Importing this module does not import torch.
"""

import os
from pathlib import Path

from common.errors import UserError
from pipeline.artifacts import SIDECAR, read_json, read_signed, verify
from pipeline.evaluation.summary import run_summary
from pipeline.grid.cells import Cell, write_cell
from pipeline.grid.published import published_run
from pipeline.params import Params
from pipeline.runs import Run, evaluation_code
from pipeline.training.metrics import metric_names

NO_TRAINING = "SPECTRAN_NO_TRAINING"  # set: a cell that would have to train ends at once

AGAIN = "running the same command again"
ANALYSIS = "analysis.json"


def trained(run: Run) -> Path:
    """The scratch directory of a run, trained first where it is not there yet. Raises UserError where it is damaged."""
    if not run.finished:
        run.verify_inputs()  # before torch is imported
        from pipeline.training.loop import train_run

        train_run(run)
    run.remove_unfinished()
    verify(run.scratch, AGAIN)
    return run.scratch


def tested(directory: Path) -> bool:
    """Whether the test ranks of a run are there, made by the code of today. Raises UserError where the run is damaged."""
    if ANALYSIS not in read_signed(directory / SIDECAR, AGAIN).get("files", {}):
        return False
    verify(directory, AGAIN, [ANALYSIS])
    return read_json(directory / ANALYSIS, AGAIN).get("code") == evaluation_code()


def ready(run: Run) -> Path | None:
    """Where a trained and tested run lies: in scratch; or, without its weights, as it is published; or nowhere."""
    return run.scratch if run.finished and tested(run.scratch) else published_run(run)


def evaluated(run: Run) -> Path:
    """Where a trained and tested run lies, made first where it is not there yet. Raises UserError where it is damaged."""
    directory = ready(run)
    if directory is None:
        directory = trained(run)
        from pipeline.evaluation.evaluate import evaluate_run

        evaluate_run(run)
    verify(directory, AGAIN)
    return directory


def evaluated_together(runs: list[Run]) -> list[Path]:
    """Where several trained and tested runs lie, in order; those not there yet are made side by side, sharing the cores.

    Each takes OMP_NUM_THREADS threads where that is set, else its share of the cores, which depends on how many runs are asked
    for, not on how many are missing: resumed or not, the digits are the same.
    """
    if len(runs) > 1 and not all(ready(run) for run in runs):
        from joblib import Parallel, cpu_count, delayed

        workers = min(len(runs), cpu_count())
        threads = threads_per_run(workers)
        with Parallel(n_jobs=workers, inner_max_num_threads=threads) as pool:
            pool(delayed(evaluated)(run) for run in runs)
    return [evaluated(run) for run in runs]


def threads_per_run(side_by_side: int) -> int:
    """Threads of a run: OMP_NUM_THREADS where the user has set it, else an equal share of the cores.

    Raises UserError for a value that is no number of threads.
    """
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked is None:
        return max(1, (os.cpu_count() or 1) // side_by_side)
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"OMP_NUM_THREADS is {asked!r}; set it to a number of threads, or unset it")
    return int(asked)


def build_cell(cell: Cell, params: Params) -> str:
    """Train and test the runs of a cell that are not there yet, put the cell in place, and return its mean metrics in one line.

    Raises UserError where runs are missing and $SPECTRAN_NO_TRAINING is set.
    """
    runs = cell.runs(params)
    missing = [run for run in runs if not ready(run)]
    if missing and os.environ.get(NO_TRAINING):
        raise UserError(f"{NO_TRAINING} is set and {len(missing)} of {len(runs)} runs are not trained")
    directories = evaluated_together(runs)
    rows = [run_summary(run, directory, params.evaluate) for run, directory in zip(runs, directories, strict=True)]
    write_cell(cell, rows, directories)
    names = metric_names(params.evaluate.cutoffs)
    means = ", ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.4f}" for name in names)
    count = f"{len(rows)} seeds" if cell.over in ("seeds", "tuned") else f"{len(rows)} runs over {cell.over} and seeds"
    return f"{cell.name}: mean of {count}: {means}"
