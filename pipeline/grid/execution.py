"""Trains and tests runs that are not in scratch yet. `train`, `cell` and `prepare` call this module; `tune`, `cold` and
`retrain` train under the run's lock themselves.

Importing this module does not import torch.
"""

import os
from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from common.vector_math import select_kernels
from pipeline.artifacts import SIDECAR, read_json, read_signed, verify
from pipeline.evaluation.summary import run_summary
from pipeline.grid.cells import Cell, data_of, write_cell
from pipeline.grid.fit import refuse_unfit
from pipeline.grid.published import published_run
from pipeline.params import Params
from pipeline.runs import Run, evaluation_code
from pipeline.training.metrics import metric_names

NO_TRAINING = "SPECTRAN_NO_TRAINING"  # environment variable; if set, a cell whose runs are not trained fails at once

RERUN = "running the same command again"
ANALYSIS = "analysis.json"


def trained(run: Run) -> Path:
    """Train a run unless scratch has it; return its directory. Raises UserError if the directory is damaged.

    Of several processes that need the same run, one trains it and the others wait.
    """
    with run.lock():
        return _trained(run)


def _trained(run: Run) -> Path:
    if not run.finished:
        run.verify_inputs()  # before torch is imported
        from pipeline.training.loop import train_run

        select_kernels()
        train_run(run)
    verify(run.scratch, RERUN)
    return run.scratch


def is_tested(directory: Path) -> bool:
    """Return whether a run has test ranks from the current evaluation code. Raises UserError if the run is damaged."""
    if ANALYSIS not in read_signed(directory / SIDECAR, RERUN).get("files", {}):
        return False
    verify(directory, RERUN, [ANALYSIS])
    return read_json(directory / ANALYSIS, RERUN).get("code") == evaluation_code()


def evaluated_directory(run: Run) -> Path | None:
    """Return the directory of a tested run, in scratch or (without weights) as published; None if there is neither."""
    return run.scratch if run.finished and is_tested(run.scratch) else published_run(run)


def evaluated(run: Run) -> Path:
    """Train and test a run unless that is done; return its directory. Raises UserError if the directory is damaged.

    Of several processes that need the same run, one trains and tests it and the others wait.
    """
    directory = evaluated_directory(run)
    if directory is None:
        with run.lock():
            directory = evaluated_directory(run)  # of the process that this one may have waited for
            if directory is None:
                directory = _trained(run)
                from torch.backends import cuda

                from pipeline.evaluation.evaluate import evaluate_run

                select_kernels()
                cuda.matmul.allow_tf32 = False  # which a training with tf32 leaves on; `stages.evaluate` ranks in float32
                evaluate_run(run)
    verify(directory, RERUN)
    return directory


def evaluated_in_parallel(runs: list[Run]) -> list[Path]:
    """Train and test runs in parallel unless that is done; return their directories in order.

    Each run takes OMP_NUM_THREADS threads if that is set, else an equal share of the cores. The share depends on the number of
    runs, not on how many of them are missing, so a resumed command gives the same digits.
    """
    if len(runs) > 1 and not all(evaluated_directory(run) for run in runs):
        from joblib import Parallel, cpu_count, delayed
        from joblib.externals.loky import get_reusable_executor

        workers = min(len(runs), cpu_count())
        threads = threads_per_run(workers)
        with Parallel(n_jobs=workers, inner_max_num_threads=threads) as pool:
            pool(delayed(evaluated)(run) for run in runs)
        # Else joblib keeps its processes, and a later call would run in the directory and environment that they started with.
        get_reusable_executor().shutdown()
    return [evaluated(run) for run in runs]


def threads_per_run(parallel_runs: int) -> int:
    """Return the number of threads of a run: OMP_NUM_THREADS if it is set, else an equal share of the cores.

    Raises UserError if OMP_NUM_THREADS is not a positive integer.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None:
        return max(1, (os.cpu_count() or 1) // parallel_runs)
    if not threads.isdecimal() or int(threads) < 1:
        raise UserError(f"OMP_NUM_THREADS is {threads!r}; set it to a number of threads, or unset it")
    return int(threads)


def build_cell(cell: Cell, params: Params, check_unchanged: Callable[[], None] = lambda: None) -> str:
    """Train and test the missing runs of a cell, write the cell, and return its mean metrics in one line.

    check_unchanged: called before the cell is written; may raise UserError, as `runs.watched` does.

    Raises UserError if missing runs cannot be built with their dim, or $SPECTRAN_NO_TRAINING says not to train them.
    """
    runs = cell.runs(params)
    missing = [run for run in runs if not evaluated_directory(run)]
    if missing and os.environ.get(NO_TRAINING):
        raise UserError(f"{len(missing)} of {len(runs)} runs are not trained yet; `python -m stages.grid` trains them")
    refuse_unfit(cell.dim_option, missing)
    directories = evaluated_in_parallel(runs)
    # Relative paths, because Polars takes brackets in a path, which the project's may have, for a pattern.
    near = [Path(os.path.relpath(directory)) for directory in directories]
    rows = [run_summary(run, directory, params.evaluate) for run, directory in zip(runs, near, strict=True)]
    check_unchanged()
    write_cell(cell, rows, directories, data_of(runs[0]))
    names = metric_names(params.evaluate.cutoffs)
    means = ", ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.4f}" for name in names)
    return f"{cell.name}: {f'mean of {len(rows)} runs: ' if len(rows) > 1 else ''}{means}"
