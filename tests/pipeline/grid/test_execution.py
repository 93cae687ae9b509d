"""Runs are found by their fingerprint, and trained and tested once."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import common.code
import pipeline.runs
from pipeline.artifacts import PARTIAL, atomic_directory, verify, write_json, write_signed
from pipeline.evaluation import evaluate as evaluation
from pipeline.grid.cells import Cell, listed_cells, other_data
from pipeline.grid.execution import build_cell, evaluated, evaluated_in_parallel, threads_per_run, trained
from pipeline.params import load_params
from pipeline.report.users import user_metrics
from pipeline.runs import Run
from pipeline.training import loop as training
from tests.sign import sign

ROOT = Path(__file__).parents[3]
SetParams = Callable[[dict[str, Any]], None]


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


def test_a_cell_of_other_data_differs(project: Path) -> None:
    """The settings are the same, so only the data can tell: after another `core`, or another tolerance of the rank."""
    params = load_params()
    cell = Cell("tiny", "sasrec", "base")
    build_cell(cell, params)
    assert cell.differs(params) == ""
    table = Path("data/sequences/tiny/sequences.parquet")
    kept = table.read_bytes()
    pl.read_parquet(table).head(-1).write_parquet(table)
    sign(table.parent)
    assert cell.differs(params) == "other log"
    table.write_bytes(kept)
    sign(table.parent)
    sidecar = Path("data/spectrum/tiny/random/sidecar.json")
    write_signed(sidecar, json.loads(sidecar.read_text()) | {"rank_rtol": 0.2})
    assert cell.differs(params) == "other svd.rank_rtol"
    shutil.rmtree(sidecar.parent)
    assert cell.differs(params) == "", "cells may be pulled without the data"


def test_records_of_data_are_compared_as_far_as_both_have_it() -> None:
    """Options come and go with versions, and a version may record more."""
    old = {"log": "a", "encoder options": {"pooling": "mean", "gone": 1}}
    assert other_data(old, {"log": "a", "catalogue": "b", "encoder options": {"pooling": "mean", "new": 2}}) == ""
    assert other_data(old, {"log": "a", "encoder options": {"pooling": "last"}}) == "encoder options"
    assert other_data(old, {"log": "b"}) == "log"


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


def test_a_training_with_tf32_is_tested_in_float32(selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `stages.evaluate` ranks, in another process."""
    run = selected()
    trained(run)
    allowed = []
    monkeypatch.setattr(evaluation, "evaluate_run", lambda run: allowed.append(torch.backends.cuda.matmul.allow_tf32))
    torch.backends.cuda.matmul.allow_tf32 = True
    evaluated(run)
    assert allowed == [False]


def test_ranks_of_older_evaluation_code_are_made_again(selected: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = selected()
    evaluated(run)
    monkeypatch.setattr(pipeline.runs, "EVALUATION_CODE", ("pipeline/report",))
    again = []
    monkeypatch.setattr(evaluation, "evaluate_run", again.append)
    evaluated(run)
    assert again == [run]


@pytest.mark.slow
def test_runs_in_parallel_are_made_in_the_directory_of_their_call(
    selected: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """joblib would use its processes again, in the directory where they started."""
    runs = [selected(seed=seed) for seed in (0, 1)]
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    evaluated_in_parallel(runs)
    shutil.copytree(Path.cwd(), tmp_path / "other", ignore=shutil.ignore_patterns(".scratch"))
    for name in ("data", ".scratch"):
        shutil.rmtree(name)
    monkeypatch.chdir(tmp_path / "other")
    directories = evaluated_in_parallel(runs)
    assert all((tmp_path / "other" / directory / "run.json").is_file() for directory in directories)


def test_a_run_takes_the_users_threads_or_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_per_run(jobs) for jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_per_run(jobs) for jobs in (1, 2, 8)] == [3, 3, 3]


@pytest.mark.usefixtures("project")
def test_of_two_that_need_the_same_run_one_trains_it(monkeypatch: pytest.MonkeyPatch, set_params: Callable[..., None]) -> None:
    """Else one would put its directory in place of the other's while that is tested."""
    set_params({"train.epochs": 1, "grid.adapters": ["base"], "grid.seeds": [0]})
    params = load_params()
    (cell,) = listed_cells(params.grid)
    (run,) = cell.runs(params)
    trainings, train = [], training.train_run

    def slowly(run: Run) -> None:
        trainings.append(run)
        time.sleep(0.5)
        train(run)

    monkeypatch.setattr(training, "train_run", slowly)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(evaluated, [run] * 3)) == [run.scratch] * 3
    assert trainings == [run]


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_two_processes_that_build_the_same_cell_leave_one_whole_cell(set_params: Callable[..., None]) -> None:
    set_params({"train.epochs": 2, "grid.seeds": [0]})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.cell", "tiny", "sasrec", "base"]
    (cell, _) = listed_cells(load_params().grid)
    found = []
    for count in (1, 2, 2):
        shutil.rmtree(".scratch", ignore_errors=True)
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(count)
        ]
        printed = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * count, printed
        verify(cell.directory, cell.command)
        assert not [path for path in Path.cwd().rglob(".*") if PARTIAL.fullmatch(path.name)]
        assert not list(Path(".scratch/unfinished").glob("*"))
        files = ("history.csv", "training.json", "config.json", "model.safetensors")
        found.append({str(file): file.read_bytes() for file in cell.directory.rglob("*") if file.name in files})
        found[-1]["ranks"] = (cell.directory / "ranks.parquet").read_bytes()
    assert len(found[0]) == 5
    assert found[0] == found[1] == found[2]
