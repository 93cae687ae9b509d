"""Whether runs fit their spectra: some adapters need a direction of the item texts for every one of their dims."""

from collections.abc import Iterable

from common.errors import UserError
from pipeline.artifacts import open_array, verify
from pipeline.runs import Run, svd_command


def refuse_unfit(option: str, runs: Iterable[Run]) -> None:
    """Raise UserError if some runs cannot be built with their dim: which adapters, why, and a dim that fits all.

    option: of params.yaml that sets the dim of these runs.
    """
    doubtful = [run for run in runs if not _fits_surely(run)]
    unfit = [(run, why) for run in doubtful if (why := misfit(run))]
    if not unfit:
        return
    adapters = ", ".join(dict.fromkeys(run.adapter for run, _ in unfit))
    datasets = ", ".join(dict.fromkeys(run.dataset for run, _ in unfit))
    why, _, advice = unfit[0][1].partition("; choose dim <= ")
    if advice:
        why += f"; choose {option} <= {min(rank(run) for run in doubtful)}, which fits all, or leave these adapters out"
    raise UserError(f"nothing was trained: {adapters} on {datasets} cannot be built; {why}")


def _fits_surely(run: Run) -> bool:
    """Whether the run can be built for certain: its dim is at most the rank, and a multiple of 4 and of the heads.

    For others, a model is built, which takes longer.
    """
    heads = run.settings["backbone"].get("heads", 1)
    chosen_rank = run.settings["adapter"].get("whiten_rank")
    return not (run.dim % 4 or run.dim % heads or chosen_rank or run.dim > rank(run))


def rank(run: Run) -> int:
    """Return the number of directions of a run's spectrum, plain or centred, whichever has fewer."""
    names = ("sigma.npy", "centred/sigma.npy")
    verify(run.spectrum, svd_command(run.dataset), names)
    return min(len(open_array(run.spectrum / name, "svd", "r")) for name in names)


def misfit(run: Run) -> str:
    """Return why the run cannot be built; "" if it can."""
    from pipeline.training.inputs import load_spectrum  # imports torch
    from pipeline.training.loop import build

    try:
        build(run, load_spectrum(run.spectrum))
    except UserError as error:
        return str(error)
    return ""
