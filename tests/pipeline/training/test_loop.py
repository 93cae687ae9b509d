"""Runs: reproducible, with the weights of the best epoch, found by fingerprint, and refused if they belong to another run."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from models.adapters.base import Base
from pipeline.artifacts import atomic_directory, sha256
from pipeline.embedding.spectrum import decompose
from pipeline.grid.execution import evaluated, trained
from pipeline.runs import Run
from pipeline.training import loop as training
from pipeline.training import ranking
from pipeline.training.batches import load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.metrics import metrics_at
from pipeline.training.steps import Steps
from tests.models.conftest import Make, numbers

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
SetParams = Callable[[dict[str, Any]], None]


def files(directory: Path) -> dict[str, bytes]:
    """Return the files of a run, without values that depend on the clock."""
    clock = ("run.json", "analysis.json", "sidecar.json")  # the sidecar has the checksums of the other two
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.name not in clock}


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------------------------- the same


@pytest.mark.parametrize("adapter", ["base", "alphafuse", "spectran"])
def test_the_same_seed_gives_the_same_run_bit_for_bit(selected: Callable[..., Run], adapter: str) -> None:
    run = selected(adapter=adapter)
    first = files(evaluated(run))
    shutil.rmtree(run.scratch)
    torch.manual_seed(99)  # what happened in the process before must not matter
    second = files(evaluated(run))
    assert set(first) == {"model.safetensors", "config.json", "history.csv", "training.json", "ranks.parquet", "spectrum.csv"}
    assert first == second


def test_another_seed_gives_another_run(selected: Callable[..., Run]) -> None:
    first, second = trained(selected(seed=0)), trained(selected(seed=1))
    assert first != second
    assert (first / "history.csv").read_text() != (second / "history.csv").read_text()
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def test_training_learns(selected: Callable[..., Run], set_params: SetParams) -> None:
    """The loss starts near that of random guessing, ln(1 + 8 negatives), and decreases."""
    set_params({"train.epochs": 15, "train.patience": 15})
    history = pl.read_csv(trained(selected()) / "history.csv")
    assert history["loss"][-1] < history["loss"][0] - 0.1
    assert history["epoch"].to_list() == list(range(1, 16))


def history_from_equal_weights(run: Run, drawn_before: int = 0) -> training.History:
    """Train a model that does not depend on the run's seed. drawn_before: how many numbers were drawn before the training."""
    torch.manual_seed(5)
    model = training.build(run, load_spectrum(run.spectrum))
    torch.rand(drawn_before)
    history = training.fit(model, load_sequences(run.sequences, 10, CPU), run).history
    shutil.rmtree(".scratch")  # otherwise the same run is resumed
    return history


def test_users_and_negatives_are_drawn_from_the_runs_seed(selected: Callable[..., Run]) -> None:
    """Without dropout, which has a generator of its own, and from the same initial weights."""
    changes = {"backbone": {"dropout": 0.0}, "train": {"epochs": 1}}
    first, second = (history_from_equal_weights(selected(seed=seed, changes=changes)) for seed in (0, 1))
    assert first[0]["loss"] != second[0]["loss"]


def test_dropout_is_drawn_from_the_runs_seed_whatever_was_drawn_before(selected: Callable[..., Run]) -> None:
    run = selected(seed=7, changes={"train": {"epochs": 1}})
    assert history_from_equal_weights(run) == history_from_equal_weights(run, drawn_before=3)
    assert torch.initial_seed() == 7


def test_steps_are_adams_with_weight_decay_in_the_gradient(make: Make) -> None:
    """Two steps compared with Adam's equations in float64; lambda and alpha have no weight decay."""
    model = make("spectran")
    spared = {id(p) for p in (model.adapter.threshold, model.adapter.alpha)}
    (optimiser,) = training.make_optimisers(model, {"learning_rate": 0.01, "weight_decay": 0.5}, CPU)
    parameters = [*model.parameters()]
    expected = [numbers(p).copy() for p in parameters]
    first, second = ([np.zeros_like(p) for p in expected] for _ in range(2))  # moments
    torch.manual_seed(0)
    for step in (1, 2):
        for i, p in enumerate(parameters):
            p.grad = torch.randn_like(p)
            gradient = numbers(p.grad) + (0.0 if id(p) in spared else 0.5) * expected[i]
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            unbiased, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            expected[i] -= 0.01 * unbiased / (np.sqrt(square) + 1e-8)
        optimiser.step()
    for p, values in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(numbers(p), values, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- early stopping


def scripted(monkeypatch: pytest.MonkeyPatch, ndcg: list[float]) -> None:
    """Make validation return these values, one per epoch."""
    values = iter(ndcg)
    monkeypatch.setattr(training, "metrics_at", lambda ranks, cutoffs: metrics_at(ranks, cutoffs) | {"NDCG@20": next(values)})


@pytest.mark.parametrize(
    ("ndcg", "patience", "epochs", "best", "stopped"),
    [
        ([0.1, 0.3, 0.2, 0.1], 2, 10, 2, 4),
        ([0.1, 0.2, 0.3, 0.4], 2, 4, 4, 4),
        ([0.4, 0.3, 0.2, 0.1], 3, 10, 1, 4),
        ([0.3, 0.1, 0.3, 0.3], 3, 10, 1, 4),
        ([0.0, 0.0], 1, 10, 1, 2),
        ([0.2, 0.1, 0.3, 0.2, 0.1], 2, 10, 3, 5),
    ],
)
def test_training_stops_after_patience_and_keeps_the_best_epochs_weights(
    selected: Callable[..., Run],
    set_params: SetParams,
    monkeypatch: pytest.MonkeyPatch,
    ndcg: list[float],
    patience: int,
    epochs: int,
    best: int,
    stopped: int,
) -> None:
    scripted(monkeypatch, ndcg)
    set_params({"train.patience": patience, "train.epochs": epochs})
    directory = trained(selected())
    summary = json.loads((directory / "training.json").read_text())
    assert (summary["best_epoch"], summary["epochs"]) == (best, stopped)
    assert summary["validation"]["NDCG@20"] == max(ndcg)
    history = pl.read_csv(directory / "history.csv")
    assert history["NDCG@20"].to_list() == ndcg[:stopped]

    # The same run cut off at its best epoch ends with the weights that were kept.
    scripted(monkeypatch, ndcg)
    set_params({"train.patience": 99, "train.epochs": best})
    weights = load_file(trained(selected()) / "model.safetensors")
    kept = load_file(directory / "model.safetensors")
    assert all(torch.equal(kept[name], weights[name]) for name in weights)


def test_the_kept_weights_have_the_validation_metrics_that_are_reported(
    selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation's ranks are exact up to the largest cutoff only; chunks and blocks are small, so that this shows."""
    for name, value in (("ITEMS", 8), ("USERS", 8), ("ROWS", 1)):
        monkeypatch.setattr(ranking, name, {"cpu": value})
    run = selected(adapter="spectran")
    directory = trained(run)
    sequences = load_sequences(run.sequences, 10, CPU)
    model = training.load_checkpoint(directory, run, load_spectrum(run.spectrum))
    ranks = training.evaluate_ranks(model, sequences.valid_history, sequences.valid_target)
    at_20 = training.evaluate_ranks(model, sequences.valid_history, sequences.valid_target, beyond=20)
    assert (ranks != at_20).any()
    summary = json.loads((directory / "training.json").read_text())
    assert summary["validation"] == metrics_at(ranks, [10, 20])
    history = pl.read_csv(directory / "history.csv")
    assert summary["validation"]["NDCG@20"] == history["NDCG@20"].max()
    assert history.row(summary["best_epoch"] - 1, named=True)["NDCG@20"] == history["NDCG@20"].max()


def test_another_similarity_is_trained_again_and_another_choice_of_history_is_not(
    selected: Callable[..., Run], set_params: SetParams
) -> None:
    run = selected()
    directory = evaluated(run)
    set_params({"evaluate.exclude_history": True, "evaluate.cutoffs": [5]})
    assert selected().fingerprint == run.fingerprint
    set_params({"evaluate.similarity": "dot"})
    other = selected()
    assert other.fingerprint != run.fingerprint
    with pytest.raises(UserError, match=r"with evaluate.similarity 'cosine', params.yaml says 'dot'; .*trains it again"):
        training.load_checkpoint(directory, other, load_spectrum(run.spectrum))


# ------------------------------------------------------------------------------------------------------------------ divergence


def test_a_loss_that_is_not_finite_is_one_line_and_leaves_nothing(
    selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Base, "auxiliary_loss", lambda self: self.id_embedding.sum() * float("nan"))
    with pytest.raises(UserError, match=r"the loss is nan at step 1 of epoch 1; lower train.learning_rate") as caught:
        trained(selected())
    assert "\n" not in str(caught.value)
    assert not list(Path(".scratch").rglob("*.*"))


@pytest.mark.parametrize("epochs", [1, 3])
def test_weights_that_explode_are_one_line_and_never_the_best(
    selected: Callable[..., Run], set_params: SetParams, epochs: int
) -> None:
    """Weights become infinite in the last step of an epoch, after its loss was computed."""
    set_params({"train.learning_rate": 1e38, "train.batch_size": 1000, "train.epochs": epochs})
    with pytest.raises(UserError, match=r"lower train.learning_rate"):
        trained(selected())
    assert not list(Path(".scratch").rglob("*.*"))


# ------------------------------------------------------------------------------------------------------------------- resuming


def test_an_interrupted_training_leaves_nothing_that_looks_finished(
    selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(selected())
    assert not selected().finished
    assert not list(Path(".scratch/runs").rglob("*.*"))


def cut_off(monkeypatch: pytest.MonkeyPatch, run: Run, epochs: int) -> None:
    """Train a run and interrupt it in the epoch after `epochs` finished ones."""
    finished = []

    def epoch(*arguments: Any) -> Any:
        result = training_epoch(*arguments)
        if len(finished) == epochs:
            raise KeyboardInterrupt
        finished.append(1)
        return result

    training_epoch = Steps.epoch
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "epoch", epoch)
        with pytest.raises(KeyboardInterrupt):
            trained(run)
    assert not run.finished


@pytest.mark.parametrize("epochs", [0, 1, 3])
@pytest.mark.parametrize(
    "choice",
    [
        {"adapter": "spectran"},
        {"backbone": "bert4rec", "adapter": "unisrec"},
        {"adapter": "spectran", "changes": {"train": {"optimiser": "sparse_adam"}}},
    ],
)
def test_a_run_cut_off_in_an_epoch_ends_as_if_it_had_not_been(
    selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, epochs: int, choice: dict[str, Any]
) -> None:
    run = selected(**choice)
    whole = files(evaluated(run))
    shutil.rmtree(run.scratch)
    cut_off(monkeypatch, run, epochs)
    torch.manual_seed(99)
    again = []
    monkeypatch.setattr(Steps, "epoch", lambda *a, f=Steps.epoch: (again.append(1), f(*a))[1])
    assert files(evaluated(run)) == whole
    assert len(again) == pl.read_csv(run.scratch / "history.csv").height - epochs, "finished epochs are not trained again"
    assert not list(Path(".scratch/unfinished").rglob("*")), "nothing is left of it"


def test_a_run_cut_off_after_its_last_epoch_trains_no_further(
    selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = selected()
    whole = files(trained(run))
    shutil.rmtree(run.scratch)
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(run)
    monkeypatch.setattr(Steps, "epoch", lambda *_: pytest.fail("trained on"))
    assert files(trained(run)) == whole


def test_the_unfinished_run_of_another_setting_is_not_continued(
    selected: Callable[..., Run], set_params: SetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, selected(), 2)
    set_params({"train.learning_rate": 0.002})
    history = pl.read_csv(trained(selected()) / "history.csv")
    shutil.rmtree(".scratch")
    assert history.equals(pl.read_csv(trained(selected()) / "history.csv"))


def test_a_damaged_state_is_named_and_training_starts_again(
    selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = selected()
    whole = files(trained(run))
    shutil.rmtree(run.scratch)
    cut_off(monkeypatch, run, 2)
    state = next(Path(".scratch/unfinished").rglob("state.pt"))
    state.write_bytes(state.read_bytes()[:1000])
    assert files(trained(run)) == whole
    assert f"{state.absolute()} is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_is_continued_by_the_next(selected: Callable[..., Run], set_params: SetParams) -> None:
    """Kill the process after every saved epoch and restart it, until one process finishes."""
    set_params({"train.epochs": 12, "train.patience": 12})
    run = selected(adapter="spectran")
    command = [sys.executable, "-m", "stages.train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    set_params({"adapter": "spectran"})
    state = Path(".scratch/unfinished") / run.fingerprint / "state.pt"
    for _ in range(3):
        process = subprocess.Popen(command, env=environment)
        seen = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > seen):
            time.sleep(0.005)
        process.kill()
        process.wait()
    subprocess.run(command, env=environment, check=True)
    killed = files(Path("data/checkpoints/selected"))
    shutil.rmtree(".scratch")
    subprocess.run(command, env=environment, check=True)
    assert files(Path("data/checkpoints/selected")) == killed


# ---------------------------------------------------------------------------------------------------- foreign and broken inputs


@pytest.mark.parametrize("content", [None, b"", b"broken", "cut", "foreign"])
def test_broken_weights_are_one_line(selected: Callable[..., Run], content: bytes | str | None) -> None:
    run = selected()
    weights = trained(run) / "model.safetensors"
    if content is None:
        weights.unlink()
    elif content == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif content == "foreign":
        shutil.copyfile(trained(selected(adapter="spectran")) / "model.safetensors", weights)
    else:
        assert isinstance(content, bytes)
        weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors is (missing|damaged)") as caught:
        training.load_checkpoint(run.scratch, run, load_spectrum(run.spectrum))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (
            None,
            "data/spectrum/tiny/random was computed for other items than those of data/sequences/tiny; run `dvc repro ",
        ),
        (sha256, "items and .* `dvc repro` makes them agree"),
    ],
)
def test_sequences_and_spectrum_of_different_items_are_refused(
    selected: Callable[..., Run], items: Callable[[Path], str] | None, expected: str
) -> None:
    run = selected()
    np.save("fewer.npy", load_spectrum(run.spectrum).embeddings().numpy()[:-1])
    of = items(run.sequences / "items.parquet") if items else "others"
    with atomic_directory(run.spectrum, {"embeddings": {"items": of}}) as directory:
        decompose(Path("fewer.npy"), directory)
    with pytest.raises(UserError, match=expected):
        trained(run)


def test_users_of_whom_nothing_can_be_learned_are_one_line(selected: Callable[..., Run]) -> None:
    """Of a user's three items, two are for test and validation, and the remaining one has no next item to predict."""
    run = selected()
    users, items = pl.read_parquet(run.sequences / "sequences.parquet"), (run.sequences / "items.parquet").read_bytes()
    with atomic_directory(run.sequences, {"dataset": "tiny"}) as directory:
        users.with_columns(pl.col("items").list.head(3)).write_parquet(directory / "sequences.parquet")
        (directory / "items.parquet").write_bytes(items)
    with pytest.raises(UserError, match=r"data/sequences/tiny: no user has two items before the validation item"):
        trained(run)


@pytest.mark.parametrize("adapter", ["alphafuse", "spectran"])
def test_more_dimensions_than_the_rank_are_refused(selected: Callable[..., Run], adapter: str) -> None:
    with pytest.raises(UserError, match=f"adapter {adapter}: dim is 25, but the embeddings have rank 24; choose dim <= 24"):
        trained(selected(adapter=adapter, dim=25))
    assert not list(Path(".scratch").rglob("*.*"))


def test_ids_alone_need_no_rank(selected: Callable[..., Run]) -> None:
    assert trained(selected(adapter="base", dim=32)).is_dir()


def test_heads_that_do_not_divide_dim_are_one_line(selected: Callable[..., Run], set_params: SetParams) -> None:
    set_params({"backbones.sasrec.heads": 3})
    with pytest.raises(UserError, match=r"heads.*3.*dim.*16"):
        trained(selected())


def test_llminit_counts_popularity_in_the_training_part_alone(selected: Callable[..., Run]) -> None:
    """Popularity is counted without each user's validation and test items; variances are numpy's."""
    run = selected(adapter="llminit", changes={"adapter": {"popular_share": 0.1}})
    histories = pl.read_parquet(run.sequences / "sequences.parquet")["items"].to_list()
    spectrum = load_spectrum(run.spectrum)
    counts = np.zeros(spectrum.n_items)
    for items in histories:
        for item in items[:-2]:
            counts[item] += 1
    popular = np.argsort(-counts, kind="stable")[: int(0.1 * spectrum.n_items)]
    variance = spectrum.embeddings().double().numpy()[popular].var(0)
    columns = training.build(run, spectrum).adapter.columns.tolist()
    assert columns == sorted(np.argsort(variance)[-run.dim :].tolist())
    assert columns != training.build(selected(adapter="llminit"), spectrum).adapter.columns.tolist()
