"""Runs found in scratch, or made: the one run_directory that decides whether there is anything to train or test.

Importing this module does not import torch.
"""

from pathlib import Path

from pipeline.artifacts import read_json, verify
from pipeline.grid.published import published_run
from pipeline.runs import Run, evaluation_code


def verify_inputs(run: Run) -> None:
    """Raise UserError where what a run reads is not what was made: a number from damaged inputs would look like any other."""
    verify(run.sequences, "the preprocess stage")
    verify(run.spectrum, "the svd stage")


def trained(run: Run) -> Path:
    """The scratch directory of a run, trained first where it is not there yet."""
    if not run.finished:
        verify_inputs(run)
        from pipeline.training.loop import train_run

        train_run(run)
    return run.scratch


def tested(directory: Path) -> bool:
    """Whether the test ranks of a run are there, made by the code of today."""
    analysis = directory / "analysis.json"
    return analysis.is_file() and read_json(analysis, "evaluation").get("code") == evaluation_code()


def ready(run: Run) -> Path | None:
    """Where a trained and tested run lies: in scratch; or, without its weights, as it is published; or nowhere."""
    return run.scratch if run.finished and tested(run.scratch) else published_run(run)


def evaluated(run: Run) -> Path:
    """Where a trained and tested run lies, made first where it is not there yet."""
    if run_directory := ready(run):
        return run_directory
    if run.finished:
        verify_inputs(run)
    directory = trained(run)  # which looks at the inputs itself
    from pipeline.evaluation.evaluate import evaluate_run

    evaluate_run(run)
    return directory


def evaluated_together(runs: list[Run]) -> list[Path]:
    """Where several trained and tested runs lie, in order; those not there yet are made side by side, sharing the cores.

    Threads a run depend on how many runs are asked for, not on how many are missing: resumed or not, the digits are the same.
    """
    if len(runs) > 1 and not all(ready(run) for run in runs):
        from joblib import Parallel, cpu_count, delayed

        workers = min(len(runs), cpu_count())
        with Parallel(n_jobs=workers, inner_max_num_threads=max(1, cpu_count() // workers)) as pool:
            pool(delayed(evaluated)(run) for run in runs)
    return [evaluated(run) for run in runs]
