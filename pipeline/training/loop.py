"""The training loop: early stopping on validation NDCG@20, best weights, history."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
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
from pipeline.artifacts import atomic_directory, atomic_file, read_json, remove_directory, scratch, write_json
from pipeline.device import environment, select_device, training_precision
from pipeline.runs import Run
from pipeline.training.batches import SplitSequences, load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.metrics import metrics
from pipeline.training.model import build_recommender
from pipeline.training.ranking import rank_all
from pipeline.training.sequences import popularity, read_sequences
from pipeline.training.steps import NO_CUDA_GRAPH, Steps, cuda_graph, random_states, set_random_states

MONITOR = "NDCG@20"
VALIDATION_CUTOFFS = [10, 20]


History = list[dict[str, Any]]


class DivergedError(UserError):
    """The loss is not finite."""


def train_run(run: Run, should_prune: Callable[[History], bool] = lambda history: False) -> tuple[History, bool]:
    """Train a run and leave it in its place in scratch, whole or not at all; return a row an epoch, and whether it is there.

    It is not where `should_prune`, asked after every epoch, says so before the end.

    Raises UserError where inputs are missing or do not fit each other, or options are invalid; DivergedError where the loss is
    not finite.
    """
    run.scratch.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is better known before training
    device = select_device()
    use_deterministic_kernels()
    train = run.settings["train"]
    sequences = load_sequences(run.sequences, train["max_history"], device, train["exclude_history"])
    spectrum = load_spectrum(run.spectrum, device)
    if sequences.n_items != spectrum.n_items:
        raise UserError(
            f"{run.sequences} has {sequences.n_items} items and {run.spectrum} {spectrum.n_items}; `dvc repro` makes them agree"
        )
    torch.manual_seed(run.seed)
    model = build(run, spectrum).to(device)
    progress = fit(model, sequences, run, should_prune)
    if not progress.stops(run.settings["train"]["epochs"], run.settings["train"]["patience"]):
        remove_directory(_unfinished(run).parent)
        return progress.history, False
    with atomic_directory(run.scratch) as directory:
        save_file(progress.weights, directory / "model.safetensors")
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
        write_json(directory / "config.json", run.config())
    remove_directory(_unfinished(run).parent)
    return progress.history, True


def use_deterministic_kernels() -> None:
    """Same seed, same machine, same thread count: same numbers, on a GPU too."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory with NaN takes a tenth of a step; nothing reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def build(run: Run, spectrum: Spectrum) -> Recommender:
    """The untrained recommender of a run, on the CPU's random state."""
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
    """Adam; where the model's rows are sparse, lazy Adam for those and Adam for the rest."""
    rate, decay = options["learning_rate"], options["weight_decay"]
    dense = torch.optim.Adam(model.parameter_groups(decay), lr=rate, fused=True, capturable=device.type == "cuda")
    rows = model.row_parameters() if model.sparse else []  # none, where all that an adapter trains is shared by the items
    return [dense, torch.optim.SparseAdam(rows, lr=rate)] if rows else [dense]


@dataclass
class Progress:
    """What a run has seen: a row of validation an epoch, the best of them with its weights, and the seconds it took."""

    history: History = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=lambda: {MONITOR: -math.inf})
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        return len(self.history)

    def stops(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are over, or `patience` of them brought nothing better."""
        return self.epoch >= epochs or (self.epoch > 0 and self.epoch - self.best["epoch"] >= patience)


def fit(
    model: Recommender, sequences: SplitSequences, run: Run, should_prune: Callable[[History], bool] = lambda history: False
) -> Progress:
    """Train until validation stops getting better, or `should_prune` says so.

    Goes on after the last finished epoch where an earlier attempt was cut off.
    """
    options = run.settings["train"]
    device = sequences.train.device
    train = sequences.train[sequences.train[:, -2] != sequences.n_items]  # one item alone has nothing to be predicted from
    generator = torch.Generator(device).manual_seed(run.seed)
    torch.manual_seed(run.seed)
    optimisers = make_optimisers(model, options, device)
    named = options["batch_size"] * model.backbone.positions * (2 + options["negatives"])
    # A graph wants shapes that do not depend on the data, and how many items a batch names does.
    graphs = device.type == "cuda" and not model.makes_rows(named) and not os.environ.get(NO_CUDA_GRAPH)
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
            ranks = evaluate_ranks(model, sequences.valid_history, sequences.valid_target, sequences.valid_excluded)
            row = {"epoch": progress.epoch + 1, "loss": loss} | metrics(ranks, VALIDATION_CUTOFFS)
            progress.history.append(row)
            if row[MONITOR] > progress.best[MONITOR]:
                progress.best = row
                progress.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            progress.seconds += time.perf_counter() - start
            _save(run, progress, steps)
            shown = {"loss": f"{loss:.3f}", "valid": f"{row[MONITOR]:.4f}", "best": f"{progress.best[MONITOR]:.4f}"}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if should_prune(progress.history):
                break
    return progress


def _unfinished(run: Run) -> Path:
    """Where a run keeps its state after every epoch: outside DVC's outputs, which are removed before a stage starts again."""
    return scratch() / "unfinished" / run.fingerprint / "state.pt"


def _save(run: Run, progress: Progress, steps: Steps) -> None:
    """All that the next epoch depends on."""
    state = {
        "progress": asdict(progress),
        "model": steps.model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in steps.optimisers],
        "random": random_states(steps.generator),
    }
    with atomic_file(_unfinished(run)) as partial:
        torch.save(state, partial)


def _resumed(run: Run, steps: Steps) -> Progress:
    """Put everything back as the last finished epoch left it; an empty progress where there is none."""
    file = _unfinished(run)
    if not file.is_file():
        return Progress()
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except (RuntimeError, OSError, EOFError, UnpicklingError):
        print(f"{run.name}: {file} is damaged; training starts again from the first epoch", file=sys.stderr)
        return Progress()
    steps.model.load_state_dict(state["model"])
    for optimiser, saved in zip(steps.optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    set_random_states(steps.generator, state["random"])
    return Progress(**state["progress"])


def _stopped(run: Run, losses: torch.Tensor, progress: Progress) -> DivergedError:
    """Keep the best weights so far in scratch; return the line that names them and the first step whose loss is not finite."""
    step = int((~losses.isfinite()).nonzero()[0])
    message = (
        f"{run.name}: the loss is {float(losses[step])} at step {step + 1} of epoch {progress.epoch + 1}; "
        "lower train.learning_rate or check the options of the adapter and the backbone"
    )
    if not progress.weights:
        return DivergedError(f"{message} (no epoch was finished before it: there are no weights to keep)")
    kept = scratch() / "stopped" / run.fingerprint
    with atomic_directory(kept) as directory:
        save_file(progress.weights, directory / "model.safetensors")
        pl.DataFrame(progress.history).write_csv(directory / "history.csv")
        write_json(directory / "config.json", run.config())
    return DivergedError(f"{message}; the best weights before it, of epoch {progress.best['epoch']}, are in {kept}")


@torch.inference_mode()
def evaluate_ranks(model: Recommender, history: torch.Tensor, targets: torch.Tensor, excluded: torch.Tensor | None = None) -> Any:
    """Rank of every user's target among all items but those excluded, the item table built once.

    history: (U, L); targets: (U,); excluded: (U, H), N for none -> (U,).
    """
    model.eval()
    table = model.adapter.table()
    return rank_all(lambda h: model.next_item_states(h, table), normalised(table), history, targets, excluded=excluded)


def load_checkpoint(directory: Path, run: Run, spectrum: Spectrum) -> Recommender:
    """Rebuild a trained recommender; raise UserError where the checkpoint belongs to another run."""
    config = read_json(directory / "config.json", "the train stage")
    expected = json.loads(json.dumps(run.config()))
    for name in ("dataset", "encoder", "backbone", "adapter", "dim", "seed", "settings"):
        if config.get(name) != expected[name]:
            raise UserError(
                f"{directory} holds a checkpoint with {name} {config.get(name)!r}, params.yaml says {expected[name]!r}; "
                "`dvc repro` trains it again"
            )
    model = build(run, spectrum)
    try:
        model.load_state_dict(load_file(directory / "model.safetensors"))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"{directory}/model.safetensors cannot be loaded ({str(error).splitlines()[0]}); train again") from None
    return model
