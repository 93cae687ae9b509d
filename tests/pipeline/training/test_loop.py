"""Runs: reproducible, with the weights of the best epoch, found by fingerprint, and refused if they belong to another run."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import common.code
import pipeline.runs
from common.errors import UserError
from models.adapters.base import Base
from pipeline.artifacts import atomic_directory, sha256, write_json, write_signed
from pipeline.embedding.spectrum import decompose
from pipeline.evaluation import evaluate as evaluation
from pipeline.grid.cells import Cell
from pipeline.grid.execution import build_cell, evaluated, trained
from pipeline.params import load_params
from pipeline.report.users import user_metrics
from pipeline.runs import Run
from pipeline.training import loop as training
from pipeline.training.batches import load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.metrics import metrics
from pipeline.training.steps import Steps

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
SetParams = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Restore torch's settings, because training makes its process use deterministic kernels."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def selected(project: Path) -> Callable[..., Run]:
    """Return the run that the project's params.yaml selects, with changes."""
    return lambda **choice: Run.of(load_params(), **choice)


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


# ------------------------------------------------------------------------------------------------------------- early stopping


def scripted(monkeypatch: pytest.MonkeyPatch, ndcg: list[float]) -> None:
    """Make validation return these values, one per epoch."""
    values = iter(ndcg)
    monkeypatch.setattr(training, "metrics", lambda ranks, cutoffs: metrics(ranks, cutoffs) | {"NDCG@20": next(values)})


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


def test_the_kept_weights_have_the_validation_metrics_that_are_reported(selected: Callable[..., Run]) -> None:
    run = selected(adapter="spectran")
    directory = trained(run)
    sequences = load_sequences(run.sequences, 10, CPU)
    model = training.load_checkpoint(directory, run, load_spectrum(run.spectrum))
    ranks = training.evaluate_ranks(model, sequences.valid_history, sequences.valid_target)
    summary = json.loads((directory / "training.json").read_text())
    assert summary["validation"] == metrics(ranks, [10, 20])
    history = pl.read_csv(directory / "history.csv")
    assert summary["validation"]["NDCG@20"] == history["NDCG@20"].max()
    assert history.row(summary["best_epoch"] - 1, named=True)["NDCG@20"] == history["NDCG@20"].max()


def test_the_test_set_is_ranked_for_every_user_with_the_kept_weights(selected: Callable[..., Run]) -> None:
    run = selected()
    ranks = pl.read_parquet(evaluated(run) / "ranks.parquet")
    users = pl.read_parquet(run.sequences / "sequences.parquet")
    assert ranks["user_id"].equals(users["user_id"])
    n_items = pl.read_parquet(run.sequences / "items.parquet").height
    assert ranks["rank"].is_between(1, n_items).all()
    sequences = load_sequences(run.sequences, 10, CPU)
    model = training.load_checkpoint(run.scratch, run, load_spectrum(run.spectrum)).eval()
    with torch.no_grad():
        table = model.adapter.table()
        scores = model.next_item_states(sequences.test_history, table) @ torch.nn.functional.normalize(table, dim=-1).T
    better = (scores > scores.gather(1, sequences.test_target[:, None])).sum(1)
    assert (ranks["rank"].to_numpy() == 1 + better.numpy()).all(), "no ties in a trained model"


def brute_force(scores: np.ndarray, targets: list[int], without: list[list[int]] | None = None) -> list[int]:
    """Return each target's rank by sorting (score descending, item ascending), without the items of `without`."""
    ranks = []
    for user, (row, target) in enumerate(zip(scores, targets, strict=True)):
        order = np.lexsort((np.arange(len(row)), -row)).tolist()
        gone = set(without[user]) - {target} if without else set()
        ranks.append([item for item in order if item not in gone].index(target) + 1)
    return ranks


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_every_ranking_is_that_of_sorted_scores_and_validation_is_by_the_chosen_similarity(
    selected: Callable[..., Run], set_params: SetParams, similarity: str
) -> None:
    """Computed in float64 from the weights. Items have very different lengths, so that the similarities give different ranks."""
    set_params({"evaluate.similarity": similarity, "adapters.base.id_std": 1.0, "train.epochs": 2})
    run = selected()
    ranks = pl.read_parquet(evaluated(run) / "ranks.parquet")
    other = {"cosine": "dot", "dot": "cosine"}[similarity]
    assert ranks.columns == ["user_id", "rank", "rank_without_history", f"rank_{other}"]
    model = training.load_checkpoint(run.scratch, run, load_spectrum(run.spectrum)).eval()
    users = pl.read_parquet(run.sequences / "sequences.parquet")["items"].to_list()
    table = model.adapter.table().detach()

    def scores(held_out: int) -> dict[str, np.ndarray]:
        rows = [items[:-held_out][-run.settings["train"]["max_history"] :] for items in users]
        padded = torch.tensor([[len(table)] * (run.settings["train"]["max_history"] - len(row)) + row for row in rows])
        states, items = model.next_item_states(padded, table).detach().double().numpy(), table.double().numpy()
        return {"dot": states @ items.T, "cosine": states @ (items / np.linalg.norm(items, axis=1, keepdims=True)).T}

    test, targets = scores(1), [items[-1] for items in users]
    assert ranks["rank"].to_list() == brute_force(test[similarity], targets)
    assert ranks[f"rank_{other}"].to_list() == brute_force(test[other], targets)
    assert ranks["rank_without_history"].to_list() == brute_force(test[similarity], targets, [items[:-1] for items in users])
    assert not ranks["rank"].equals(ranks[f"rank_{other}"], check_dtypes=False)
    validated = json.loads((run.scratch / "training.json").read_text())["validation"]
    expected = brute_force(scores(2)[similarity], [items[-2] for items in users])
    assert validated == pytest.approx(metrics(np.array(expected), [10, 20]))


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


def test_a_cell_holds_the_figures_of_every_ranking_and_its_tables_those_that_are_chosen(
    project: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell("tiny", "sasrec", "base")
    build_cell(cell, load_params())
    monkeypatch.setenv("SPECTRAN_NO_TRAINING", "1")
    before = pl.read_csv(cell.directory / "metrics.csv")
    set_params({"evaluate.exclude_history": True})
    build_cell(cell, load_params())
    after = pl.read_csv(cell.directory / "metrics.csv")
    ranks = pl.read_parquet(cell.directory / "ranks.parquet")
    for row, turned in zip(before.iter_rows(named=True), after.iter_rows(named=True), strict=True):
        of_seed = ranks.filter(seed=row["seed"])
        for column, name in (("rank", ""), ("rank_without_history", "without_history_"), ("rank_dot", "dot_")):
            assert row[f"{name}HR@20"] == pytest.approx((of_seed[column] <= 20).mean())
        assert turned["NDCG@20"] == row["without_history_NDCG@20"] >= turned["with_history_NDCG@20"] == row["NDCG@20"]
        assert (turned["dot_NDCG@20"], turned["similarity"]) == (row["dot_NDCG@20"], "cosine")
    for rows, column in ((before, "rank"), (after, "rank_without_history")):
        row = rows.row(0, named=True) | {"run_directory": str(cell.directory / "seed-0")}
        hits = user_metrics(row, 20).group_by("seed", maintain_order=True).agg(pl.col("HR@20").mean())
        assert hits["HR@20"].to_list() == pytest.approx(rows["HR@20"].to_list())
        assert user_metrics(row, 20)["HR@20"].to_list() == (ranks[column] <= 20).cast(pl.Float64).to_list()


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


# --------------------------------------------------------------------------------------------------------------------- scratch


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The list of runs that are trained, with fast training."""
    seen: list[Run] = []

    def train_run(run: Run) -> None:
        seen.append(run)
        with atomic_directory(run.scratch, {}) as directory:
            write_json(directory / "config.json", {})

    monkeypatch.setattr(training, "train_run", train_run)
    return seen


def test_a_finished_run_is_not_trained_again(selected: Callable[..., Run], trainings: list[Run]) -> None:
    assert trained(selected()) == trained(selected())
    assert len(trainings) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"dim": 8},
        {"adapter": "spectran"},
        {"adapters.base.id_std": 0.03},
        {"backbones.sasrec.dropout": 0.1},
        {"train.learning_rate": 0.002},
        {"train.epochs": 5},
        {"train.patience": 3},
        {"train.batch_size": 32},
        {"train.weight_decay": 0.1},
        {"train.negatives": 9},
        {"train.loss": "cross_entropy"},
        {"train.precision": "bfloat16"},
        {"train.temperature": 0.1},
        {"train.max_history": 9},
        {"evaluate.similarity": "dot"},
        {"train.optimiser": "sparse_adam"},
    ],
)
def test_a_run_with_another_setting_is_another_run(
    selected: Callable[..., Run], trainings: list[Run], set_params: SetParams, change: dict[str, Any]
) -> None:
    trained(selected())
    set_params(change)
    trained(selected())
    assert len(trainings) == 2


@pytest.mark.parametrize(
    "change", [{"adapters.spectran.order": 2}, {"evaluate.cutoffs": [5]}, {"grid.seeds": [7]}, {"download.mirror": "x"}]
)
def test_a_setting_that_the_run_does_not_read_does_not_train_it_again(
    selected: Callable[..., Run], trainings: list[Run], set_params: SetParams, change: dict[str, Any]
) -> None:
    trained(selected())
    set_params(change)
    trained(selected())
    assert len(trainings) == 1


@pytest.mark.parametrize("artifact", ["data/sequences/tiny", "data/spectrum/tiny/random"])
def test_a_run_on_other_inputs_is_another_run(selected: Callable[..., Run], trainings: list[Run], artifact: str) -> None:
    trained(selected())
    sidecar = Path(artifact) / "sidecar.json"
    content = json.loads(sidecar.read_text())
    write_signed(sidecar, content | {"dataset": "made otherwise"})
    trained(selected())
    assert len(trainings) == 2


@pytest.mark.parametrize(
    ("file", "trains"),
    [
        ("models/adapters/base.py", True),
        ("models/adapters/spectran.py", False),
        ("models/backbones/sasrec.py", True),
        ("models/backbones/hstu.py", False),
        ("models/losses/info_nce.py", True),
        ("models/losses/cross_entropy.py", False),
        ("pipeline/report/tables.py", False),
        ("models/core/attention.py", True),
        ("pipeline/device.py", True),
        ("pipeline/training/inputs.py", True),
    ],
)
def test_code_that_decides_the_numbers_makes_another_run(
    selected: Callable[..., Run],
    trainings: list[Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    trains: bool,
) -> None:
    copy = tmp_path / "code"
    for folder in ("common", "models", "pipeline"):
        shutil.copytree(pipeline.runs.ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pipeline.runs, "ROOT", copy)
    trained(selected())
    (copy / file).write_text((copy / file).read_text() + "\n# a comment\n")
    common.code._fingerprint.cache_clear()
    trained(selected())
    assert len(trainings) == 1, "a comment never trains anew"
    (copy / file).write_text((copy / file).read_text() + "\nCHANGED = True\n")
    common.code._fingerprint.cache_clear()
    trained(selected())
    assert len(trainings) == 1 + trains


def test_a_finished_run_is_evaluated_once(selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = selected()
    evaluated(run)
    monkeypatch.setattr(evaluation, "evaluate_run", lambda run: pytest.fail("evaluated again"))
    monkeypatch.setattr(training, "train_run", lambda run: pytest.fail("trained again"))
    evaluated(run)


def test_ranks_of_older_evaluation_code_are_made_again(selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = selected()
    evaluated(run)
    monkeypatch.setattr(pipeline.runs, "EVALUATION_CODE", ("pipeline/report",))
    again = []
    monkeypatch.setattr(evaluation, "evaluate_run", again.append)
    evaluated(run)
    assert again == [run]


def test_an_interrupted_training_leaves_nothing_that_looks_finished(
    selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(selected())
    assert not selected().finished
    assert not list(Path(".scratch/runs").rglob("*.*"))


# ------------------------------------------------------------------------------------------------------------------- resuming


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


@pytest.mark.parametrize(("choice", "name"), [({"adapter": "spectran"}, "adapter"), ({"dim": 8}, "dim"), ({"seed": 5}, "seed")])
def test_the_checkpoint_of_another_run_is_refused(selected: Callable[..., Run], choice: dict[str, Any], name: str) -> None:
    directory = trained(selected())
    with pytest.raises(UserError, match=f"holds a checkpoint with {name} .*`dvc repro` trains it again") as caught:
        evaluation.evaluate_checkpoint(directory, selected(**choice))
    assert "\n" not in str(caught.value)


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


def test_the_spectrum_of_another_dataset_is_refused_in_the_place_of_this_ones(selected: Callable[..., Run]) -> None:
    run = selected()
    run.spectrum.rename("data/spectrum/tiny/other")
    shutil.copytree("data/spectrum/tiny/other", run.spectrum)
    load_spectrum(run.spectrum)
    shutil.move(run.spectrum, "data/spectrum/other")
    with pytest.raises(UserError, match=r"data/spectrum/other/sidecar.json is damaged or belongs elsewhere"):
        load_spectrum(Path("data/spectrum/other"))


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
