"""Cells: their names, stages and runs; reading them; moving those that the grid no longer lists."""

from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.errors import UserError
from pipeline.artifacts import atomic_directory
from pipeline.grid.cells import RUN_FILES, Cell, listed_cells, move_unlisted_cells, read_cells
from pipeline.grid.tasks import unfinished_tasks
from pipeline.params import load_params
from tests.pipeline.grid.lists import grid


def write_cell(cell: Cell, *more: dict[str, Any], **values: float) -> None:
    """Write a cell of one seed, in which only metrics.csv has content."""
    names = {"dataset": cell.dataset, "backbone": cell.backbone, "adapter": cell.adapter, "seed": 0}
    with atomic_directory(cell.directory, {"cell": cell.name}) as directory:
        pl.DataFrame([names | values | row for row in more or ({},)]).write_csv(directory / "metrics.csv")
        (directory / "seed-0").mkdir()
        for name in ("ranks.parquet", *(f"seed-0/{name}" for name in RUN_FILES)):
            (directory / name).touch()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)
    return tmp_path


def test_cells_are_listed_dataset_by_dataset() -> None:
    assert [cell.name for cell in listed_cells(grid())] == ["a-sasrec-x", "a-sasrec-y", "b-sasrec-x", "b-sasrec-y"]


def test_variants_dims_and_tuned_cells_are_cells_of_their_own() -> None:
    ablations = {"datasets": ["a"], "backbones": ["sasrec", "hstu"], "variants": ["full", "without_attention"]}
    dimensions = {"datasets": ["b"], "backbones": ["sasrec"], "adapters": ["y"], "dims": [4, 8]}
    tuning = {"datasets": ["b"], "backbones": ["hstu"], "losses": ["cross_entropy"], "trials": 2}
    cells = listed_cells(grid(ablations=ablations, dimensions=dimensions, tuning=tuning))[4:]
    assert [cell.name for cell in cells] == [
        "a-sasrec-spectran-variants",
        "a-hstu-spectran-variants",
        "b-sasrec-y-dims",
        "b-hstu-x-cross_entropy-tuned",
        "b-hstu-y-cross_entropy-tuned",
    ]
    assert [cell.stage for cell in cells] == [
        "grid/dvc.yaml:ablation@a-sasrec",
        "grid/dvc.yaml:ablation@a-hstu",
        "grid/dvc.yaml:dimension@b-sasrec-y",
        "grid/dvc.yaml:tuned@b-hstu-x-cross_entropy",
        "grid/dvc.yaml:tuned@b-hstu-y-cross_entropy",
    ]
    assert cells[1].run_directory({"variant": "full", "seed": 1}) == cells[1].directory / "full/seed-1"
    assert cells[2].run_directory({"dim": 8, "seed": 0}) == cells[2].directory / "dim-8/seed-0"


@pytest.mark.usefixtures("project")
def test_a_run_that_several_cells_need_is_one_run(set_params: Any) -> None:
    """SpecTran's full variant and the grid's dim have the same fingerprints as the runs of Table 2."""
    set_params(
        {
            "grid.ablations": {"datasets": ["tiny"], "backbones": ["sasrec"], "variants": ["full", "without_encoding"]},
            "grid.dimensions": {"datasets": ["tiny"], "backbones": ["sasrec"], "adapters": ["spectran"], "dims": [8, 16]},
        }
    )
    params = load_params()
    fingerprints = {cell.name: {run.fingerprint for run in cell.runs(params)} for cell in listed_cells(params.grid)}
    main = fingerprints["tiny-sasrec-spectran"]
    assert len(main) == 2
    assert [len(found) for found in fingerprints.values()] == [2, 2, 4, 4]
    assert main < fingerprints["tiny-sasrec-spectran-variants"]
    assert main < fingerprints["tiny-sasrec-spectran-dims"]
    names = [run.name for run in unfinished_tasks(params)]
    assert len(names) == len(set(names)) == 2 + 2 + 2 + 2, "each once, and no two share a log"
    assert "tiny-sasrec-spectran without_encoding dim 16 seed 1" in names


@pytest.mark.usefixtures("folder")
def test_missing_cells_are_named_unless_part_is_enough() -> None:
    cells = listed_cells(grid())
    write_cell(cells[1], HR=0.1)
    with pytest.raises(UserError, match=r"3 of 4 cells are missing \(a-sasrec-x, b-sasrec-x, b-sasrec-y\);.*--partial") as caught:
        read_cells(cells)
    assert "\n" not in str(caught.value)
    (found,) = read_cells(cells, partial=True).to_dicts()
    assert found == {"dataset": "a", "backbone": "sasrec", "adapter": "y", "seed": 0, "HR": 0.1} | {
        "over": "seeds",
        "run_directory": "grid/cells/a-sasrec-y/seed-0",
    }


@pytest.mark.usefixtures("folder")
def test_no_cells_at_all_are_refused_even_in_part() -> None:
    with pytest.raises(UserError, match=r"4 of 4 cells are missing \(.*…\)"):
        read_cells(listed_cells(grid()), partial=True)


@pytest.mark.usefixtures("folder")
def test_cells_with_other_columns_are_read_together() -> None:
    cells = listed_cells(grid(datasets=["a"]))
    write_cell(cells[0], HR=0, epochs=3)
    write_cell(cells[1], HR=0.5)
    assert read_cells(cells)["HR"].to_list() == [0.0, 0.5]


def test_cells_that_the_grid_lists_no_longer_are_set_aside_not_deleted(folder: Path) -> None:
    for cell in product("ab", ["sasrec"], "xy"):
        write_cell(Cell(*cell), HR=0.1)
    assert move_unlisted_cells(listed_cells(grid(adapters=["x"]))) == ["a-sasrec-y", "b-sasrec-y"]
    assert sorted(path.name for path in (folder / "grid/cells").iterdir()) == ["a-sasrec-x", "b-sasrec-x"]
    assert (folder / ".scratch/unlisted-cells/a-sasrec-y/metrics.csv").is_file()
    write_cell(Cell("a", "sasrec", "y"), HR=0.2)
    assert move_unlisted_cells(listed_cells(grid(adapters=["x"]))) == ["a-sasrec-y"]
    assert "0.2" in (folder / ".scratch/unlisted-cells/a-sasrec-y/metrics.csv").read_text(), "the newer one takes the place"
    assert move_unlisted_cells(listed_cells(grid(adapters=["x"]))) == []


@pytest.mark.usefixtures("folder")
def test_there_may_be_no_cells_to_set_aside() -> None:
    assert move_unlisted_cells(listed_cells(grid())) == []
