"""How long the grid will take on this machine, from a few training steps and a part of a validation of every method."""

import math
import time
from dataclasses import dataclass

import torch

from common.words import plural
from pipeline.device import select_device, training_precision
from pipeline.grid.cells import Cell, listed_cells
from pipeline.grid.execution import threads_per_run
from pipeline.grid.tasks import check_fit, unfinished_runs
from pipeline.grid.tuning import FINALISTS, Tuning, listed_tunings
from pipeline.params import Params
from pipeline.runs import Run
from pipeline.training.batches import load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import build, evaluate_ranks, make_optimisers
from pipeline.training.steps import Steps

WARM_UP = 2  # steps that are not measured
MEASURED = 5  # steps
RANKED = 2000  # users of a measured validation

Method = tuple[str, str, str, int, str]  # dataset, backbone, adapter, dim, loss


@dataclass(frozen=True)
class Share:
    """What one method adds to the grid: its runs that are still to be made, and the seconds of an epoch of one of them."""

    name: str
    runs: int
    epoch: float


def estimate(params: Params, jobs: int) -> str:
    """Measure every method of the grid that has runs to make; print a line for each and return the estimate for all.

    The seconds are those of one run alone with the threads that it would have among `jobs`. Raises UserError if inputs are
    missing, or an adapter does not fit.
    """
    check_fit(params)
    torch.set_num_threads(threads_per_run(jobs))
    device = select_device()
    shares = []
    tunings = _tunings(params)
    longest_tuning = 0.0  # its runs follow one another, so more jobs do not shorten it
    for key, count in _missing(params, tunings).items():
        dataset, backbone, adapter, dim, loss = key
        choice = {"dataset": dataset, "backbone": backbone, "adapter": adapter, "dim": dim, "seed": params.grid.seeds[0]}
        run = Run.of(params, **choice, changes={"train": {"loss": loss}})
        under = "" if loss == params.train.loss else f", {loss}"
        shares.append(Share(f"{dataset}-{backbone}-{adapter} dim {dim}{under}", count, epoch_seconds(run, device)))
        longest_tuning = max(longest_tuning, tunings.get(key, 0) * shares[-1].epoch)
        print(f"{shares[-1].name}: {shares[-1].epoch:.2f} s an epoch, {plural(count, 'run')}", flush=True)
    total = sum(share.runs for share in shares)
    if not total:
        return "every run of the grid exists; nothing to train"
    train = params.train
    shortest, longest = min(train.patience + 1, train.epochs), train.epochs
    tasks = total - sum(count - 1 for count in tunings.values())
    epoch_of_all = max(sum(share.runs * share.epoch for share in shares) / min(jobs, tasks), longest_tuning)
    seconds = {epochs: epoch_of_all * epochs for epochs in (shortest, longest)}
    return (
        f"{total} runs, {min(jobs, tasks)} at a time: training alone takes {duration(seconds[shortest])} if each stops after "
        f"{shortest} epochs, {duration(seconds[longest])} if each takes all {longest}; start-up and testing are extra, and "
        "runs side by side slow each other down"
    )


def _tunings(params: Params) -> dict[Method, int]:
    """The number of runs of every tuning that has no choice yet."""
    return {
        # The default and the finalists are trained under a second seed too.
        _method(tuning, params, params.grid.dim): tuning.n_trials + min(1 + FINALISTS, tuning.n_trials)
        for tuning in listed_tunings(params)
        if not tuning.has_choice
    }


def _method(of: Cell | Tuning, params: Params, dim: int) -> Method:
    return of.dataset, of.backbone, of.adapter, dim, of.loss or params.train.loss


def _missing(params: Params, tunings: dict[Method, int]) -> dict[Method, int]:
    """The number of runs to make by method, those of tunings included. Variants count as their adapter."""
    found = dict(tunings)

    def add(cell: Cell, dim: int, count: int) -> None:
        key = _method(cell, params, dim)
        found[key] = found.get(key, 0) + count

    for cell in listed_cells(params.grid):
        decided_by = cell.tuning(params)
        if decided_by and not decided_by.has_choice:
            add(cell, params.grid.dim, len(params.grid.seeds))
    for cell, run in unfinished_runs(params):
        add(cell, run.dim, 1)
    return found


def epoch_seconds(run: Run, device: torch.device) -> float:
    """Seconds of an epoch of a run, validation included, from a few steps and the ranking of some users. Nothing is written."""
    options = run.settings["train"]
    run.verify_inputs()
    sequences = load_sequences(run.sequences, options["max_history"], device)
    torch.manual_seed(run.seed)
    model = build(run, load_spectrum(run.spectrum, device)).to(device)
    generator = torch.Generator(device).manual_seed(run.seed)
    precision = training_precision(options["precision"], device)
    steps = Steps(model, make_optimisers(model, options, device), generator, precision, options["batch_size"])
    train = sequences.train[sequences.train[:, -2] != sequences.n_items]
    batches = train.split(options["batch_size"])
    model.train()
    for i in range(WARM_UP):
        steps.step(batches[i % len(batches)])
    start = _now(device)
    for i in range(MEASURED):
        steps.step(batches[i % len(batches)])
    step = (_now(device) - start) / MEASURED
    users = min(RANKED, len(sequences.valid_target))
    start = _now(device)
    evaluate_ranks(model, sequences.valid_history[:users], sequences.valid_target[:users], run.settings["evaluate"]["similarity"])
    ranking = (_now(device) - start) * len(sequences.valid_target) / users
    return step * len(train) / options["batch_size"] * model.backbone.passes_per_epoch + ranking


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def duration(seconds: float) -> str:
    """Seconds as people say them, to about two figures.

    >>> duration(8.2), duration(200), duration(9000)
    ('9 seconds', '4 minutes', '2.5 hours')
    """
    if seconds <= 1:
        return "1 second"
    if seconds < 90:
        return f"{math.ceil(seconds)} seconds"
    if seconds < 90 * 60:
        return f"{math.ceil(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
