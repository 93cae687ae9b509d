"""The files of the report, written from the cells."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts import SIDECAR, read_signed, write_signed
from pipeline.grid.baseline_cells import directory_of
from pipeline.grid.cells import Cell, listed_cells, read_cells
from pipeline.grid.published import publish, read_runs, restore
from pipeline.params import load_params
from pipeline.report import decision
from pipeline.report.decision import write_decision
from pipeline.report.measured import Measured
from pipeline.report.trivial import Beaten, trivial_rows
from pipeline.report.write import write_report
from tests.conftest import enter_copy
from tests.pipeline.conftest import FOLDER
from tests.pipeline.report.conftest import build_grid


def test_the_report_and_the_decision_name_the_baselines(reported: Path, set_params: Callable[[dict[str, Any]], None]) -> None:
    report, page = ((reported / f"metrics/{name}.md").read_text() for name in ("report", "decision"))
    knn = pl.read_csv(directory_of("tiny") / "metrics.csv").filter(pl.col("adapter") == "item_knn")["NDCG@20"][0]
    assert re.search(rf"\| ItemKNN +\| .*{knn:.4f}", report)
    assert "the best ranking without training (NDCG@20" in report
    rows = pl.concat(Cell("tiny", "sasrec", name).read() for name in ("base", "spectran"))
    means = rows.group_by("adapter").agg(
        pl.col("NDCG@20", "trainable_parameters", "training_seconds", "inference_seconds").mean()
    )
    leader = re.search(r"\| +\| (.+?) +\|", page)[1]
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
        assert shown in page
    # Another max_history: these baselines are of other settings, and so are left out and said to be missing.
    set_params({"train.max_history": 5})
    assert trivial_rows(load_params(), ["tiny"])[1] == ["tiny"]
    set_params({"train.max_history": 10})
    assert trivial_rows(load_params(), ["tiny"])[1] == []
    # Another spectrum: nearest by text was ranked by the embeddings of another encoder.
    sidecar = Path("data/spectrum/tiny/random/sidecar.json")
    write_signed(sidecar, read_signed(sidecar, "svd") | {"encoder": "other"})
    assert trivial_rows(load_params(), ["tiny"])[1] == ["tiny"]


def test_the_best_adapter_can_be_served_although_it_beats_no_baseline(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "against_trivial", lambda *_: Beaten("ItemKNN", 0.9, -0.2, -0.3, -0.1, 0.001))
    write_report(load_params())
    page = (reported / "metrics/decision.md").read_text()
    assert "DOES NOT BEAT ItemKNN" in page
    assert re.search(r"^To serve .* all the same: `dvc exp run evaluate -S dataset=tiny ", page, re.MULTILINE)


def test_the_decision_names_the_adapters_that_were_not_trained(reported: Path) -> None:
    page = reported / "metrics/decision.md"
    assert "Not in this report" not in page.read_text()
    shutil.rmtree(Cell("tiny", "sasrec", "base").directory)
    write_report(load_params(), partial=True)
    (line,) = (line for line in page.read_text().splitlines() if line.startswith("Not in this report"))
    assert line == "Not in this report: tiny-sasrec-base. This page says nothing of them; `python -m stages.grid` trains them."


def test_tuned_adapters_have_a_section_of_their_own_that_says_how_to_select_them(
    reported: Path, set_params: Callable[[dict[str, Any]], None]
) -> None:
    """The tuned runs are copies of the default ones, except for SpecTran's settings, so both sections name the same leader."""
    set_params({"grid.tuning.datasets": ["tiny"]})
    shutil.copytree(reported / "grid/cells", reported / "tuned")
    default = read_cells([Cell("tiny", "sasrec", name) for name in ("base", "spectran")])
    tuned = default.with_columns(
        pl.col("run_directory").str.replace("grid/cells", "tuned", literal=True), over=pl.lit("tuned"), loss=pl.lit("info_nce")
    )
    changes = {"train.weight_decay": 1e-06, "backbone.dropout": 0.5, "adapter.id_std": 1.0}
    for directory in tuned["run_directory"]:
        config = json.loads((Path(directory) / "config.json").read_text())
        for name, value in changes.items():
            section, _, option = name.partition(".")
            config["settings"][section][option] = value
        (Path(directory) / "config.json").write_text(json.dumps(config))
    params = load_params()
    changed = write_decision(params, Measured.of(params, pl.concat([default, tuned])), [])
    page = (reported / "metrics/decision.md").read_text()
    headings = [line.partition(":")[0] for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## Tiny, SASRec, with the settings of params.yaml", "## Tiny, SASRec, tuned, with the sampled softmax"]
    assert "take the one whose leader has the highest validation NDCG@20" in page
    assert len(re.findall(r"\| validation NDCG@20 +\| 0\.\d{4}", page)) == 2
    untuned, serve = (line for line in page.splitlines() if line.startswith("To serve"))
    leader = re.search(r"-S adapter=(\w+)", serve)[1]
    added = f"-S train.weight_decay=1e-06 -S backbones.sasrec.dropout=0.5 -S adapters.{leader}.id_std=1.0`, then"
    sections = load_params().model_dump()
    old = (sections["train"]["weight_decay"], sections["backbones"]["sasrec"]["dropout"], sections["adapters"][leader]["id_std"])
    back = "-S train.weight_decay={} -S backbones.sasrec.dropout={} -S adapters.{}.id_std={}".format(*old[:2], leader, old[2])
    put = " The first command leaves its settings in params.yaml. Before the next grid, put the old ones back: "
    assert serve == untuned.replace("`, then", f" {added}") + f"{put}`dvc exp run check {back}`."
    assert not [line for line in changed if "have the settings of params.yaml" in line]
    assert all(line.startswith("Tiny, SASRec, ") for line in changed)


def test_a_project_may_lie_in_a_folder_whose_name_reads_like_a_glob(
    tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = enter_copy(tiny_project, tmp_path / "shop [1] *", monkeypatch)
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(re.sub(r"epochs: 4", "epochs: 2", params))
    build_grid(load_params())
    assert "No verdict" in (root / "metrics/decision.md").read_text() or "Ship" in (root / "metrics/decision.md").read_text()
    assert Cell("tiny", "sasrec", "base").read().height == 2


def test_names_may_consist_of_digits(project: Path, set_params: Callable[[dict[str, Any]], None]) -> None:
    """Zeros in front of a number would be lost, and numbers cannot be joined to a path."""
    for folder in ("raw/{}", "sequences/{}", "embeddings/{}/{}", "spectrum/{}/{}"):
        old, new = (project / "data" / folder.format(*names) for names in (("tiny", "random"), ("2014", "007")))
        sidecar = read_signed(old.relative_to(project) / SIDECAR, "the test")  # it is valid in one place alone
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
        write_signed(new.relative_to(project) / SIDECAR, sidecar)
    named = load_params().model_dump(mode="json")
    sources = {"2014": named["sources"]["tiny"]}
    encoders = {"007": named["encoders"]["random"]}
    set_params({"sources": sources, "templates": {}, "encoders": encoders, "dataset": "2014", "encoder": "007"})
    set_params({"train.epochs": 2, "grid.seeds": [0], "grid.datasets": ["2014"]})
    for name in ("ablations", "dimensions", "tuning"):
        set_params({f"grid.{name}.datasets": []})
    params = load_params()
    build_grid(params)
    assert "## 2014, SASRec: " in (project / "metrics/decision.md").read_text()
    cells = listed_cells(params.grid)
    rows = read_cells(cells)
    assert rows.select("dataset", "encoder").unique().rows() == [("2014", "007")]
    assert rows["variant"].to_list() == [None, "full"]
    publish([(cell, cell.runs(params)) for cell in cells], FOLDER, "0123456789")
    assert read_runs(FOLDER).select("dataset", "encoder", "commit").unique().rows() == [("2014", "007", "0123456789")]
    shutil.rmtree("grid/cells")
    assert restore(FOLDER) == cells
    write_report(params)
