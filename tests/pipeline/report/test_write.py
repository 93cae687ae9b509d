"""The files of the report, written from the cells."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts import read_signed, write_signed
from pipeline.grid.baseline_cells import directory_of
from pipeline.grid.cells import Cell
from pipeline.params import load_params
from pipeline.report.trivial import trivial_rows
from pipeline.report.write import write_report
from tests.conftest import enter_copy
from tests.pipeline.report.conftest import build_grid


def test_the_report_and_the_decision_name_the_baselines(reported: Path, set_params: Callable[[dict[str, Any]], None]) -> None:
    report, decision = ((reported / f"metrics/{name}.md").read_text() for name in ("report", "decision"))
    knn = pl.read_csv(directory_of("tiny") / "metrics.csv").filter(pl.col("adapter") == "item_knn")["NDCG@20"][0]
    assert re.search(rf"\| ItemKNN +\| .*{knn:.4f}", report)
    assert "the best ranking without training (NDCG@20" in report
    rows = pl.concat(Cell("tiny", "sasrec", name).read() for name in ("base", "spectran"))
    means = rows.group_by("adapter").agg(
        pl.col("NDCG@20", "trainable_parameters", "training_seconds", "inference_seconds").mean()
    )
    leader = re.search(r"\| +\| (.+?) +\|", decision)[1]
    name = {"Base (ID only)": "base", "SpecTran": "spectran"}[leader]
    (mine,) = means.filter(pl.col("adapter") == name).to_dicts()
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet").height
    for shown in (
        f"{mine['NDCG@20']:.4f} ",
        f"{1e3 * mine['inference_seconds'] / users:.3g} ms",
        f"{mine['trainable_parameters']:,.0f} trained parameters, {4 * mine['trainable_parameters'] / 2**20:.1f} MiB",
        f"{mine['training_seconds'] / 60:.1f} minutes",
        f"## Tiny, SASRec: {users:,} users, 1 seed",
        "`evaluate.exclude_history=true`",
    ):
        assert shown in decision
    # Another max_history: these baselines are of other settings, and so are left out and said to be missing.
    set_params({"train.max_history": 5})
    assert trivial_rows(load_params(), ["tiny"])[1] == ["tiny"]
    set_params({"train.max_history": 10})
    assert trivial_rows(load_params(), ["tiny"])[1] == []
    # Another spectrum: nearest by text was ranked by the embeddings of another encoder.
    sidecar = Path("data/spectrum/tiny/random/sidecar.json")
    write_signed(sidecar, read_signed(sidecar, "svd") | {"encoder": "other"})
    assert trivial_rows(load_params(), ["tiny"])[1] == ["tiny"]


def test_the_decision_names_the_adapters_that_were_not_trained(reported: Path) -> None:
    decision = reported / "metrics/decision.md"
    assert "Not trained" not in decision.read_text()
    shutil.rmtree(Cell("tiny", "sasrec", "base").directory)
    write_report(load_params(), partial=True)
    (line,) = (line for line in decision.read_text().splitlines() if line.startswith("Not trained"))
    assert line == "Not trained: tiny-sasrec-base. This page says nothing of them; `python -m stages.grid` trains them."


def test_a_project_may_lie_in_a_folder_whose_name_reads_like_a_glob(
    tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = enter_copy(tiny_project, tmp_path / "shop [1] *", monkeypatch)
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(re.sub(r"epochs: 4", "epochs: 2", params))
    build_grid(load_params())
    assert "No verdict" in (root / "metrics/decision.md").read_text() or "Ship" in (root / "metrics/decision.md").read_text()
    assert Cell("tiny", "sasrec", "base").read().height == 2
