"""Published results contain what the cells do, and suffice for tables, significance tests and for continuing elsewhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from common.errors import UserError
from pipeline.artifacts import SIDECAR, read_json, sha256, write_signed
from pipeline.grid import published as module
from pipeline.grid.cells import Cell, listed_cells, read_cells
from pipeline.grid.execution import build_cell, evaluated_directory
from pipeline.grid.published import publish, published_run, restore
from pipeline.grid.tasks import unfinished_tasks
from pipeline.grid.tuning import SPACE, listed_tunings, tune, write_choice
from pipeline.params import Params, load_params
from pipeline.report.publishing import restore_grid
from pipeline.report.results import table_metrics, unusable_runs
from pipeline.report.users import comparisons
from tests.pipeline.conftest import FOLDER
from tests.sign import sign

ROOT = Path(__file__).parents[3]


def compared(cells: list[Cell]) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = read_cells(cells)
    plain = rows.filter(pl.col("over") == "seeds")
    return rows.drop("run_directory"), comparisons(plain, 20, unusable_runs(plain, load_params().train))


def test_tables_and_tests_come_out_the_same_from_what_is_published(cells: list[Cell]) -> None:
    before = compared(cells)
    kept = {path: path.read_bytes() for cell in cells for path in cell.directory.rglob("*") if path.suffix in (".json", ".csv")}
    shutil.rmtree("grid/cells")
    shutil.rmtree(".scratch")
    assert restore(FOLDER) == cells
    after = compared(cells)
    for was, now in zip(before, after, strict=True):
        assert was.equals(now)
    for path, content in kept.items():
        if path.name not in ("metrics.csv", "sidecar.json"):  # which has no checksums of weights any more
            assert path.read_bytes() == content, path
    assert restore(FOLDER) == [], "cells of the same runs stay"


def test_a_cell_of_other_runs_makes_room_for_the_published_one(
    cells: list[Cell], set_params: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Else tables would mix published figures with others."""
    published = compared(cells)
    set_params({"adapters.base.id_std": 0.5})
    build_cell(cells[0], load_params())
    other = cells[0].fingerprints()
    assert restore(FOLDER) == [cells[0]]
    assert compared(cells)[0].equals(published[0])
    place = Path(".scratch/unlisted-cells").absolute() / cells[0].name
    assert f"publish: {cells[0].directory} is of other runs and was moved to {place}" in capsys.readouterr().out
    assert json.loads(next(place.rglob("config.json")).read_text())["fingerprint"] in other


def test_results_published_with_one_ranking_alone_are_still_read(cells: list[Cell]) -> None:
    """Older results in docs/results have only ranks among all items."""
    before = compared(cells)
    for file in FOLDER.glob("tiny-*.parquet"):
        table = pl.read_parquet(file)
        assert {"ranks", "ranks_without_history", "ranks_dot"} < set(table.columns)
        table.drop("ranks_without_history", "ranks_dot").write_parquet(file)
    lines = pl.read_csv(FOLDER / "runs.csv")
    others = [name for name in lines.columns if name.startswith(("without_history_", "dot_"))]
    lines.drop("similarity", "exclude_history", *others).write_csv(FOLDER / "runs.csv")
    files = read_json(FOLDER / SIDECAR, "publish")["files"]
    write_signed(FOLDER / SIDECAR, {"commit": "0123456789", "files": {name: sha256(FOLDER / name) for name in files}})
    shutil.rmtree("grid/cells")
    shutil.rmtree(".scratch")
    assert restore(FOLDER) == cells
    after = compared(cells)
    assert after[0].equals(before[0].drop("similarity", "exclude_history", *others))
    assert after[1].equals(before[1])


def change_table(name: str, change: pl.Expr) -> None:
    """Change a table of the sequences; their sidecar says so."""
    folder = Path("data/sequences/tiny")
    table = pl.read_parquet(folder / name)
    table.with_columns(change).write_parquet(folder / name)
    sign(folder)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("sequences.parquet", pl.col("items").list.reverse(), "other log"),
        ("items.parquet", pl.col("text") + "!", "other catalogue"),
    ],
)
def test_restored_cells_are_not_taken_for_cells_of_other_data(cells: list[Cell], name: str, change: pl.Expr, says: str) -> None:
    """Someone else's published results must not stand in a table beside runs on other data of the same name."""
    shutil.rmtree("grid/cells")
    assert restore(FOLDER) == cells
    params = load_params()
    assert {cell.differs(params) for cell in cells} == {""}
    change_table(name, change)
    assert {cell.differs(params) for cell in cells} == {says}
    shutil.rmtree("data/sequences/tiny")
    assert {cell.differs(params) for cell in cells} == {""}, "settings are compared without the data too"


def test_the_same_data_in_other_bytes_is_the_same_data(cells: list[Cell]) -> None:
    """Another version of Polars writes other bytes."""
    shutil.rmtree("grid/cells")
    restore(FOLDER)
    for name in ("sequences.parquet", "items.parquet"):
        file = Path("data/sequences/tiny") / name
        before = sha256(file)
        pl.read_parquet(file).write_parquet(file, compression="lz4")
        assert sha256(file) != before
    sign(Path("data/sequences/tiny"))
    assert {cell.differs(load_params()) for cell in cells} == {""}


@pytest.mark.parametrize("data", [["tiny"], {"tiny": "here"}])
def test_data_that_a_published_folder_cannot_name_is_refused(cells: list[Cell], data: Any) -> None:
    shutil.rmtree("grid/cells")
    params = Path("params.yaml").read_bytes()
    sidecar = FOLDER / SIDECAR
    write_signed(sidecar, read_json(sidecar, "publish") | {"data": data})
    with pytest.raises(UserError, match=r"here/sidecar\.json: data is not what it should be; publish it again$"):
        restore_grid(FOLDER)
    assert not Path("grid/cells").exists()
    assert Path("params.yaml").read_bytes() == params


def test_a_published_run_is_not_trained_again(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params()
    before = pl.read_csv(cells[0].directory / "metrics.csv")
    shutil.rmtree("grid/cells")
    shutil.rmtree(".scratch")
    assert unfinished_tasks(params) == []
    monkeypatch.setenv("SPECTRAN_NO_TRAINING", "1")
    for cell in cells:
        build_cell(cell, params)
    assert pl.read_csv(cells[0].directory / "metrics.csv").equals(before)
    assert not list(Path("grid/cells").rglob("*.safetensors"))


def test_a_run_that_was_published_again_with_other_ranks_is_read_again(cells: list[Cell]) -> None:
    """Another machine's figures may differ under the same fingerprint."""
    restore(FOLDER)
    (run, *_) = cells[0].runs(load_params())
    copy = published_run(run)
    assert copy is not None
    ranks = FOLDER / f"{cells[0].name}.parquet"
    table = pl.read_parquet(ranks)
    table.with_columns(ranks=pl.col("ranks").list.eval(pl.lit(1))).write_parquet(ranks)
    sign(FOLDER)
    assert published_run(run) == copy
    assert pl.read_parquet(copy / "ranks.parquet")["rank"].unique().to_list() == [1]


def test_a_run_of_other_settings_or_other_evaluation_is_not_what_is_published(
    cells: list[Cell], set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run, *_) = cells[0].runs(load_params())
    shutil.rmtree(".scratch")
    assert published_run(run) == evaluated_directory(run) is not None
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluation_code", lambda: "another")
        assert published_run(run) is None
    set_params({"train.epochs": 2})
    (other, *_) = cells[0].runs(load_params())
    assert published_run(other) is None


def test_cells_of_other_settings_are_refused(cells: list[Cell], set_params: Callable[..., None]) -> None:
    before = (FOLDER / "runs.csv").read_bytes()
    set_params({"train.epochs": 2})
    params = load_params()
    with pytest.raises(UserError, match=r"^grid/cells/tiny-sasrec-base is stale: code, parameters or inputs changed since"):
        publish([(cell, cell.runs(params)) for cell in cells], FOLDER, "0123456789")
    assert (FOLDER / "runs.csv").read_bytes() == before


def test_choices_are_published_with_their_cells_and_come_back(project: Path, set_params: Callable[..., None]) -> None:
    """The budget of a tuned cell is restored; an existing choice is not overwritten."""
    (project / "grid").mkdir(exist_ok=True)
    shutil.copyfile(ROOT / SPACE, project / SPACE)
    set_params({"train.epochs": 1, "grid.adapters": ["base"], "grid.seeds": [0]})
    set_params({"grid.tuning": {"datasets": ["tiny"], "backbones": ["sasrec"], "losses": ["info_nce"], "trials": 2, "seed": 0}})
    params = load_params()
    (tuning,) = listed_tunings(params)
    tune(tuning)
    write_choice(tuning)
    cells = listed_cells(params.grid)
    for cell in cells:
        build_cell(cell, params)
    publish([(cell, cell.runs(params)) for cell in cells], FOLDER, "0123456789")
    before = tuning.file.read_text()
    shutil.rmtree("grid/cells")
    tuning.file.unlink()
    assert restore(FOLDER) == cells
    assert tuning.file.read_text() == before
    assert tuning.has_choice
    tuning.file.write_text("chosen: {}")
    restore(FOLDER)
    assert tuning.file.read_text() == "chosen: {}"


def test_what_is_published_is_small_and_complete(cells: list[Cell]) -> None:
    lines = pl.read_csv(FOLDER / "runs.csv")
    assert lines.height == 2 + 2 + 2
    assert {*table_metrics([10, 20]), "fingerprint", "commit", "device", "threads", "torch", "epochs", "training_seconds"} <= set(
        lines.columns
    )
    assert lines["fingerprint"].n_unique() == lines.height
    found = pl.read_parquet(FOLDER / "tiny-sasrec-base.parquet")
    assert found.schema["ranks"] == pl.List(pl.UInt16)
    assert "user_id" not in found.columns
    assert not list(FOLDER.rglob("*.safetensors"))


def test_cells_tested_by_other_code_are_refused(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in FOLDER.iterdir()}
    monkeypatch.setattr(module, "evaluation_code", lambda: "another")
    params = load_params()
    with pytest.raises(UserError, match=r"tiny-sasrec-base is stale: the code that tests runs changed since; run `dvc repro "):
        publish([(cell, cell.runs(params)) for cell in cells], FOLDER, "0123456789")
    assert {path: path.read_bytes() for path in FOLDER.iterdir()} == before


@pytest.mark.parametrize("name", ["archive-office", "archive-toys"])
def test_the_results_in_git_can_be_tabulated_after_options_have_come_and_gone(project: Path, name: str) -> None:
    """Their runs are from a version with the option `train.exclude_history` and without newer options."""
    folder = Path("docs/results") / name
    shutil.copytree(ROOT / folder, folder)
    lines = pl.read_csv(folder / "runs.csv").filter(over="seeds")
    grid = yaml.safe_load((folder / "grid.yaml").read_text())["grid"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"grid": grid}
    restore(folder)
    cells = {Cell(*row) for row in lines.select("dataset", "backbone", "adapter").iter_rows()}
    assert len(cells) == 9
    # Inputs are not needed to compare settings.
    for cell in cells:
        assert cell.differs(Params.parse(params, "params.yaml")) == "", cell.name


def test_results_are_published_and_read_in_a_folder_whose_name_reads_like_a_glob(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(Path.cwd(), tmp_path / "shop [1]")
    monkeypatch.chdir(tmp_path / "shop [1]")
    module._published.cache_clear()
    shutil.rmtree("grid/cells")
    shutil.rmtree(".scratch")
    assert published_run(cells[0].runs(load_params())[0]), "it is found by its fingerprint"
    assert restore(FOLDER) == cells
