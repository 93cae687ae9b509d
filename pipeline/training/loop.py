"""The training loop, with early stopping on validation NDCG@20. An interrupted training resumes after its last finished epoch."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from common.errors import UserError
from models.core.adapter import Spectrum
from models.core.loss import normalised
from models.core.recommender import Recommender
from models.losses import LOSSES
from pipeline.artifacts import atomic_directory, check_seal, read_json, remove_directory, scratch, sealed_file, verify, write_json
from pipeline.device import environment, select_device, training_precision
from pipeline.params import Similarity
from pipeline.runs import Run
from pipeline.training.batches import SplitSequences, load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.metrics import metrics_at
from pipeline.training.model import build_recommender
from pipeline.training.ranking import rank_all
from pipeline.training.sequences import popularity, read_sequences
from pipeline.training.steps import NO_CUDA_GRAPH, Steps, cuda_graph, random_states, set_random_states

MONITOR = "NDCG@20"
VALIDATION_CUTOFFS = [10, 20]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


History = list[dict[str, Any]]


class DivergedError(UserError):
    """Training stopped because the loss is not finite."""


def train_run(run: Run) -> None:
    """Train a run and write it atomically to its directory in scratch.

    Raises UserError if inputs are missing or do not match, or options are invalid; DivergedError if the loss is not finite.
    """
    run.scratch.parent.mkdir(parents=True, exist_ok=True)  # fail before training if scratch cannot be written
    device = select_device()
    use_deterministic_kernels()
    train = run.settings["train"]
    run.verify_inputs()
    sequences = load_sequences(run.sequences, train["max_history"], device)
    spectrum = load_spectrum(run.spectrum, device)
    if sequences.n_items != spectrum.n_items:
        raise UserError(
            f"{run.sequences} has {sequences.n_items} items and {run.spectrum} {spectrum.n_items}; `dvc repro` makes them agree"
        )
    torch.manual_seed(run.seed)
    model = build(run, spectrum).to(device)
    progress = fit(model, sequences, run)
    with atomic_directory(run.scratch, {"run": run.fingerprint}) as directory:
        save_file(progress.weights, directory / WEIGHTS)
        pl.DataFrame(progress.history).write_csv(directory / "history.csv")
        summary = {
            "epochs": progress.epoch,
            "best_epoch": progress.best["epoch"],
            "trainable_parameters": model.n_trainable(),
            "validation": {name: value for name, value in progress.best.items() if name not in ("epoch", "loss")},
        }
        write_json(directory / "training.json", summary)
        cost = {"seconds": progress.seconds, "seconds_per_epoch": progress.seconds / progress.epoch}
        write_json(directory / "run.json", cost | environment(device))
        write_json(directory / CONFIG, run.config())
    remove_directory(_unfinished(run).parent)


def use_deterministic_kernels() -> None:
    """Make torch use deterministic kernels: the same seed, machine and number of threads give the same numbers, also on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling new memory with NaN takes a tenth of a step, and no code here reads memory before writing it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def build(run: Run, spectrum: Spectrum) -> Recommender:
    """Return the untrained recommender of a run; its parameters are drawn from torch's global generator."""
    spectrum = replace(spectrum, load_popularity=lambda: torch.from_numpy(popularity(*read_sequences(run.sequences))))
    train = run.settings["train"]
    return build_recommender(
        spectrum,
        adapter=run.adapter,
        adapter_options=run.settings["adapter"],
        backbone=run.backbone,
        backbone_options=run.settings["backbone"],
        dim=run.dim,
        max_history=train["max_history"],
        objective=LOSSES.load(train["loss"])(train["temperature"], train["negatives"]),
        sparse=train["optimiser"] == "sparse_adam",
    )


def make_optimisers(model: Recommender, options: dict[str, Any], device: torch.device) -> list[torch.optim.Optimizer]:
    """Return Adam for all parameters; if the gradients of item rows are sparse, SparseAdam for these and Adam for the rest.

    options: the section `train`.
    """
    rate, decay = options["learning_rate"], options["weight_decay"]
    dense = torch.optim.Adam(model.parameter_groups(decay), lr=rate, fused=True, capturable=device.type == "cuda")
    rows = model.row_parameters() if model.sparse else []  # [] if an adapter trains no row per item
    return [dense, torch.optim.SparseAdam(rows, lr=rate)] if rows else [dense]


@dataclass
class Progress:
    """The state of a training.

    history: a row of validation metrics per epoch. best: the row with the best MONITOR. weights: those of that epoch, on the CPU.
    seconds: of training and validation so far.
    """

    history: History = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=lambda: {MONITOR: -math.inf})
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        return len(self.history)

    def stops(self, epochs: int, patience: int) -> bool:
        """Return whether all epochs are done, or the last `patience` epochs have not improved the validation."""
        return self.epoch >= epochs or (self.epoch > 0 and self.epoch - self.best["epoch"] >= patience)


def fit(model: Recommender, sequences: SplitSequences, run: Run) -> Progress:
    """Train until validation stops improving; return the progress.

    If an earlier training of this run was interrupted, it resumes after the last finished epoch. Raises DivergedError if a loss
    is not finite, UserError if no user has enough training items.
    """
    options = run.settings["train"]
    device = sequences.train.device
    train = sequences.train[sequences.train[:, -2] != sequences.n_items]
    if not len(train):
        raise UserError(
            f"{run.sequences}: no user has two items before the validation item, so nothing is left to learn from; "
            "bring more interactions a user, or raise preprocess.cap"
        )
    generator = torch.Generator(device).manual_seed(run.seed)
    torch.manual_seed(run.seed)
    optimisers = make_optimisers(model, options, device)
    references = options["batch_size"] * model.backbone.positions * (2 + options["negatives"])
    # A graph needs fixed shapes, and the number of distinct items in a batch depends on the data.
    graphs = device.type == "cuda" and not model.builds_rows(references) and not os.environ.get(NO_CUDA_GRAPH)
    precision = training_precision(options["precision"], device)
    steps = Steps(model, optimisers, generator, precision, options["batch_size"], cuda_graph if graphs else None)
    progress = _resumed(run, steps)
    with tqdm(total=options["epochs"], initial=progress.epoch, desc=run.name, unit="epoch", mininterval=2) as bar:
        while not progress.stops(options["epochs"], options["patience"]):
            start = time.perf_counter()
            losses, targets = steps.epoch(train)
            if not losses.isfinite().all():
                raise _stopped(run, losses, progress)
            loss = float((losses * targets).sum() / targets.sum().clamp(min=1))
            valid, similarity = (sequences.valid_history, sequences.valid_target), run.settings["evaluate"]["similarity"]
            ranks = evaluate_ranks(model, *valid, similarity, beyond=max(VALIDATION_CUTOFFS))
            row = {"epoch": progress.epoch + 1, "loss": loss} | metrics_at(ranks, VALIDATION_CUTOFFS)
            progress.history.append(row)
            if row[MONITOR] > progress.best[MONITOR]:
                progress.best = row
                progress.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            progress.seconds += time.perf_counter() - start
            _save(run, progress, steps)
            shown = {"loss": f"{loss:.3f}", "valid": f"{row[MONITOR]:.4f}", "best": f"{progress.best[MONITOR]:.4f}"}
            bar.set_postfix(shown, refresh=False)
            bar.update()
    return progress


def _unfinished(run: Run) -> Path:
    """Return the file of a run's state after the last epoch. It is no DVC output, because DVC deletes outputs before a stage."""
    return scratch() / "unfinished" / run.fingerprint / "state.pt"


def _save(run: Run, progress: Progress, steps: Steps) -> None:
    """Write everything that the next epoch depends on: progress, weights, moments and random states."""
    state = {
        "progress": asdict(progress),
        "model": steps.model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in steps.optimisers],
        "random": random_states(steps.generator),
    }
    with sealed_file(_unfinished(run)) as partial:
        torch.save(state, partial)


def _resumed(run: Run, steps: Steps) -> Progress:
    """Restore the state after the last finished epoch and return its progress; an empty one if there is no usable state."""
    file = _unfinished(run)
    if not file.is_file():
        return Progress()
    try:
        check_seal(file, "training")
    except UserError:
        print(f"{run.name}: {file} is damaged; training starts again from the first epoch", file=sys.stderr)
        return Progress()
    state = torch.load(file, weights_only=True, map_location="cpu")
    steps.model.load_state_dict(state["model"])
    for optimiser, saved in zip(steps.optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    set_random_states(steps.generator, state["random"])
    return Progress(**state["progress"])


def _stopped(run: Run, losses: torch.Tensor, progress: Progress) -> DivergedError:
    """Write the best weights so far to scratch; return an error that names them and the first step whose loss is not finite."""
    step = int((~losses.isfinite()).nonzero()[0])
    message = (
        f"{run.name}: the loss is {float(losses[step])} at step {step + 1} of epoch {progress.epoch + 1}; "
        "lower train.learning_rate or check the options of the adapter and the backbone"
    )
    if not progress.weights:
        return DivergedError(f"{message} (no epoch was finished before it: there are no weights to keep)")
    kept = scratch() / "stopped" / run.fingerprint
    with atomic_directory(kept, {"run": run.fingerprint}) as directory:
        save_file(progress.weights, directory / WEIGHTS)
        pl.DataFrame(progress.history).write_csv(directory / "history.csv")
        write_json(directory / CONFIG, run.config())
    return DivergedError(f"{message}; the best weights before it, of epoch {progress.best['epoch']}, are in {kept}")


@torch.inference_mode()
def evaluate_ranks(
    model: Recommender,
    history: torch.Tensor,
    targets: torch.Tensor,
    similarity: Similarity = "cosine",
    excluded: Callable[[torch.Tensor], torch.Tensor] | None = None,
    beyond: int | None = None,
) -> Any:
    """Return the rank of every user's target among all items, (U,) int64. The item table is built once.

    history: (U, L); targets: (U,). excluded: a function that returns items (B, H) for users (B,); with it the result is (2, U),
    and the second row has the ranks without these items. beyond: a cutoff. Ranks above it need not be exact, only above it.
    """
    model.eval()
    table = model.adapter.table()
    # States have length 1 in both cases, because a factor per user does not change that user's ranks.
    rows = normalised(table) if similarity == "cosine" else table
    return rank_all(lambda h: model.next_item_states(h, table), rows, history, targets, excluded=excluded, beyond=beyond)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config with one level of keys: `dim`, `train.loss`, `adapter.alpha` and so on."""
    options = {
        f"{section}.{name}": value for section, chosen in config.get("settings", {}).items() for name, value in chosen.items()
    }
    return {name: value for name, value in config.items() if name != "settings"} | options


def load_checkpoint(directory: Path, run: Run, spectrum: Spectrum) -> Recommender:
    """Return the recommender of a checkpoint. Raises UserError if the checkpoint is damaged or belongs to another run."""
    verify(directory, "`dvc repro train`", [CONFIG, WEIGHTS])
    found = _flat(read_json(directory / CONFIG, "`dvc repro train`"))
    expected = _flat(json.loads(json.dumps(run.config())))
    for name in expected | found:
        if name != "fingerprint" and found.get(name) != expected.get(name):
            raise UserError(
                f"{directory} holds a checkpoint with {name} {found.get(name)!r}, params.yaml says {expected.get(name)!r}; "
                "`dvc repro` trains it again"
            )
    run.verify_inputs()
    model = build(run, spectrum)
    try:
        model.load_state_dict(load_file(directory / WEIGHTS))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"{directory / WEIGHTS} cannot be loaded ({str(error).splitlines()[0]}); train again") from None
    return model
