"""Reports of the tiny project."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from pipeline.grid.baseline_cells import write_baselines
from pipeline.grid.cells import listed_cells
from pipeline.grid.execution import build_cell
from pipeline.params import Params, load_params
from pipeline.report import formats, results, table_data, tables
from pipeline.report.figures import Figures
from pipeline.report.measured import Measured
from pipeline.report.sections import Section, sections
from pipeline.report.write import write_report
from tests.conftest import inside
from tests.params import change_params
from tests.pipeline.report.values import NAMES, NO_RUNS, report_rows

NOTHING = pl.DataFrame()


@pytest.fixture(scope="session")
def reported_project(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with its grid, its baselines and its report."""
    root = tmp_path_factory.mktemp("reported") / "project"
    shutil.copytree(tiny_project, root)
    change_params(root / "params.yaml", {"train.epochs": 12, "train.patience": 1, "grid.seeds": [0]})
    with inside(root):
        build_grid(load_params())
    return root


@pytest.fixture
def reported(project: Path, reported_project: Path) -> Path:
    """A copy of the reported project, which is the current directory."""
    shutil.copytree(reported_project, project, dirs_exist_ok=True)
    return project


def build_grid(params: Params) -> None:
    """Train the grid and write its baselines and its report, in the current directory, which holds a project."""
    for cell in listed_cells(params.grid):
        build_cell(cell, params)
    write_baselines(params.dataset, params.encoder, params.train.max_history, params.evaluate)
    write_report(params)


@pytest.fixture
def report(project: Path) -> tuple[list[Section], dict[str, formats.Table]]:
    """The sections and tables of a report of two adapters on the tiny dataset, with figures in `figures`."""
    return tiny_report()


def tiny_report() -> tuple[list[Section], dict[str, formats.Table]]:
    """The same, in the current directory, which holds the tiny project."""
    values = {("tiny", "sasrec", adapter): [0.1, 0.2] for adapter in ("base", "spectran")}
    found = report_rows(values)
    for run_directory in found["run_directory"]:
        directory = Path(run_directory)
        directory.mkdir(parents=True)
        (directory / "config.json").write_text('{"fingerprint": "0123456789abcdef"}')
        (directory / "analysis.json").write_text(json.dumps({"learned": {"principal_weight": 2.0, "subordinate_weight": 3.0}}))
        (directory / "history.csv").write_text("epoch,NDCG@20\n1,0.1\n2,0.2\n")
    params = load_params()
    summed = results.summarise(found, NAMES)
    cost = table_data.cost(found)
    result_sets = [results.ResultSet(None, summed, NOTHING, NOTHING, NO_RUNS)]
    measured = Measured(
        rows=found,
        cutoff=20,
        result_sets=result_sets,
        gains=NOTHING,
        group_gains=NOTHING,
        grouped=NOTHING,
        cost=cost,
        trivial=NOTHING,
        without_trivial=["tiny"],
        unusable=NO_RUNS,
    )
    shown = tables.all_tables(params, measured, [])
    Path("figures").mkdir()
    figures = Figures(Path("figures"), "spectran")
    figures.comparison(summed, "NDCG@20", pl.DataFrame(schema={"dataset": pl.String}), NO_RUNS)
    figures.learning_curves(found)
    figures.cost(cost, summed, "NDCG@20")
    return sections(
        params,
        measured,
        shown,
        dict.fromkeys(("comparison", "learning-curves", "cost"), "SpecTran and Base are level."),
        [],
        ["every adapter is above chance"],
        ["More seeds."],
    ), shown
