"""The training loop: early stopping on validation NDCG@20, best weights, history."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from models.adapters.adapter import Spectrum
from models.errors import UserError
from models.losses import Objective, normalised
from models.recommender import Recommender, build_recommender
from pipeline.artifacts import atomic_directory, atomic_file, read_json, scratch, write_json
from pipeline.device import environment, select_device, training_precision
from pipeline.metrics import metrics
from pipeline.ranking import rank_all
from pipeline.runs import Run
from pipeline.sequences import Sequences, load_sequences
from pipeline.spectrum import load_spectrum

MONITOR = "NDCG@20"
VALIDATION_CUTOFFS = [10, 20]


History = list[dict[str, Any]]


class DivergedError(UserError):
    """The loss is not finite."""


def train_run(run: Run, hopeless: Callable[[History], bool] = lambda history: False) -> tuple[History, bool]:
    """Train a run and leave it in its place in scratch, whole or not at all; return a row an epoch, and whether it is there.

    It is not where `hopeless`, asked after every epoch, says so before the end.

    Raises UserError where inputs are missing or do not fit each other, or options are invalid; DivergedError where the loss is
    not finite.
    """
    run.scratch.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is better known before training
    device = select_device()
    use_deterministic_kernels()
    sequences = load_sequences(run.sequences, run.settings["train"]["max_history"], device)
    spectrum = load_spectrum(run.spectrum, device)
    if sequences.n_items != spectrum.n_items:
        raise UserError(
            f"{run.sequences} has {sequences.n_items} items and {run.spectrum} {spectrum.n_items}; `dvc repro` makes them agree"
        )
    torch.manual_seed(run.seed)
    model = build(run, spectrum).to(device)
    progress = fit(model, sequences, run, hopeless)
    if not progress.stops(run.settings["train"]["epochs"], run.settings["train"]["patience"]):
        shutil.rmtree(_unfinished(run).parent, ignore_errors=True)
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
    shutil.rmtree(_unfinished(run).parent, ignore_errors=True)
    return progress.history, True


def use_deterministic_kernels() -> None:
    """Same seed, same machine, same thread count: same numbers, on a GPU too."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def build(run: Run, spectrum: Spectrum) -> Recommender:
    """The untrained recommender of a run, on the CPU's random state."""
    train = run.settings["train"]
    return build_recommender(
        spectrum,
        adapter=run.adapter,
        adapter_options=run.settings["adapter"],
        backbone=run.backbone,
        backbone_options=run.settings["backbone"],
        dim=run.dim,
        max_history=train["max_history"],
        objective=Objective(train["loss"], train["temperature"], train["negatives"]),
    )


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
    model: Recommender, sequences: Sequences, run: Run, hopeless: Callable[[History], bool] = lambda history: False
) -> Progress:
    """Train until validation stops getting better, or `hopeless` says so.

    Goes on after the last finished epoch where an earlier attempt was cut off.
    """
    options = run.settings["train"]
    device = sequences.train.device
    train = sequences.train[sequences.train[:, -2] != sequences.n_items]  # one item alone has nothing to be predicted from
    generator = torch.Generator(device).manual_seed(run.seed)
    torch.manual_seed(run.seed)
    optimiser = torch.optim.Adam(model.parameter_groups(options["weight_decay"]), lr=options["learning_rate"], fused=True)
    precision = training_precision(options["precision"], device)
    progress = _resumed(run, model, optimiser, generator)
    with tqdm(total=options["epochs"], initial=progress.epoch, desc=run.name, unit="epoch", mininterval=2) as bar:
        while not progress.stops(options["epochs"], options["patience"]):
            start = time.perf_counter()
            with precision:
                losses, targets = _train_epoch(model, optimiser, train, options["batch_size"], generator)
            if not losses.isfinite().all():
                raise _stopped(run, losses, progress)
            loss = float((losses * targets).sum() / targets.sum().clamp(min=1))
            ranks = evaluate_ranks(model, sequences.valid_history, sequences.valid_target)
            row = {"epoch": progress.epoch + 1, "loss": loss} | metrics(ranks, VALIDATION_CUTOFFS)
            progress.history.append(row)
            if row[MONITOR] > progress.best[MONITOR]:
                progress.best = row
                progress.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            progress.seconds += time.perf_counter() - start
            _save(run, progress, model, optimiser, generator)
            shown = {"loss": f"{loss:.3f}", "valid": f"{row[MONITOR]:.4f}", "best": f"{progress.best[MONITOR]:.4f}"}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if hopeless(progress.history):
                break
    return progress


def _unfinished(run: Run) -> Path:
    """Where a run keeps its state after every epoch: outside DVC's outputs, which are removed before a stage starts again."""
    return scratch() / "unfinished" / run.fingerprint / "state.pt"


def _save(run: Run, progress: Progress, model: Recommender, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """All that the next epoch depends on."""
    state = {
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "draws": generator.get_state(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if generator.device.type == "cuda" else [],
    }
    with atomic_file(_unfinished(run)) as partial:
        torch.save(state, partial)


def _resumed(run: Run, model: Recommender, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> Progress:
    """Put everything back as the last finished epoch left it; an empty progress where there is none."""
    place = _unfinished(run)
    if not place.is_file():
        return Progress()
    try:
        state = torch.load(place, weights_only=True, map_location="cpu")
    except (RuntimeError, OSError, EOFError, UnpicklingError):
        print(f"{run.name}: {place} is damaged; training starts again from the first epoch", file=sys.stderr)
        return Progress()
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    generator.set_state(state["draws"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Progress(**state["progress"])


def _train_epoch(
    model: Recommender,
    optimiser: torch.optim.Optimizer,
    train: torch.Tensor,
    batch_size: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All users in random order, as often as the backbone asks for; the loss of every step and its number of targets, float64.

    Losses stay on the device until the epoch is over: looking at each would wait for the GPU at every step.
    """
    model.train()
    losses, targets = [], []
    for _ in range(model.backbone.passes_per_epoch):
        order = torch.randperm(len(train), generator=generator, device=train.device)
        for batch in order.split(batch_size):
            loss, count = model.loss(train[batch], generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
            targets.append(count)
    if not losses:
        return torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return torch.stack(losses).double().cpu(), torch.stack(targets).double().cpu()


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
def evaluate_ranks(model: Recommender, history: torch.Tensor, targets: torch.Tensor) -> Any:
    """Rank of every user's target among all items, the item table built once. history: (U, L); targets: (U,) -> (U,)."""
    model.eval()
    table = model.adapter.table()
    return rank_all(lambda h: model.next_item_states(h, table), normalised(table), history, targets)


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
