"""Lists of a grid that take the place of those in params.yaml."""

from pathlib import Path

import polars as pl
import pytest
import yaml

from common.errors import UserError
from pipeline.grid.cells import listed_cells
from pipeline.grid.lists import choose_grid
from pipeline.params import load_params

ROOT = Path(__file__).parents[3]


def test_the_papers_lists_take_the_place_of_the_grids_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text() + "# the end\n")
    before = load_params(file)
    choose_grid(ROOT / "grid/paper.yaml", file)
    after = load_params(file)
    assert after.model_dump(exclude={"grid"}) == before.model_dump(exclude={"grid"})
    assert file.read_text().startswith((ROOT / "params.yaml").read_text().partition("\ngrid:")[0])
    assert file.read_text().endswith("# the end\n")
    cells = listed_cells(after.grid)
    kinds = [cell.over for cell in cells]
    assert {kind: kinds.count(kind) for kind in kinds} == {"seeds": 4 * 3 * 9, "variants": 4 * 3, "dims": 2 * 4}
    found = {(cell.dataset, run.dim, cell.adapter) for cell in cells for run in cell.runs(after)}
    paper = pl.read_csv(ROOT / "metrics/paper/table4.csv").select("dataset", "dim", "adapter").rows()
    assert set(paper) <= found


@pytest.mark.parametrize("comment", ["# mine\n", "\n# mine\n\n", "# mine\n# more: than one\n"])
@pytest.mark.parametrize("before", ["  ablations:", "  seeds:", "  - 0\n  #"])
def test_comments_at_the_start_of_a_line_do_not_end_the_section(tmp_path: Path, comment: str, before: str) -> None:
    """In the old grid and in the new one; a comment above the next section stays."""
    file, lists = tmp_path / "params.yaml", tmp_path / "mine.yaml"
    text = (ROOT / "params.yaml").read_text()
    head, _, grid = text.partition("\ngrid:")
    sections = f"{head}\n# above the grid\ngrid:{grid.replace(before, comment + before, 1)}"
    file.write_text(sections + "# of the end\n")
    lists.write_text((ROOT / "grid/paper.yaml").read_text().replace("  ablations:", comment + "  ablations:"))
    choose_grid(lists, file)
    assert yaml.safe_load(file.read_text()) == yaml.safe_load(text) | yaml.safe_load(lists.read_text())
    assert "\n# above the grid\ngrid:" in file.read_text()
    assert file.read_text().endswith("# of the end\n")
    assert file.read_text().count("# mine") == lists.read_text().count("# mine")


def test_lists_that_are_no_grid_leave_the_parameters_alone(tmp_path: Path) -> None:
    file, lists = tmp_path / "params.yaml", tmp_path / "mine.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    for text, expected in (("grids: {}\n", "mine.yaml: grid: "), ("grid: {dims: 3}\n", "unknown parameter 'dims'")):
        lists.write_text(text)
        with pytest.raises(UserError, match=expected):
            choose_grid(lists, file)
        assert file.read_text() == (ROOT / "params.yaml").read_text()
    paper = yaml.safe_dump({"grid": yaml.safe_load((ROOT / "grid/paper.yaml").read_text())["grid"]}, sort_keys=False)
    head, seeds, rest = paper.partition("  seeds:\n  - 0\n  - 1\n  - 2\n")
    assert seeds
    for text in (
        f"x: &a [0]\n{head}  seeds: *a\n{rest}",
        f"{head}  seeds: [\n0\n  ]\n{rest}",
    ):  # the lines from `grid:` are not all
        lists.write_text(text)
        with pytest.raises(UserError, match=r"mine.yaml cannot be put into .*params.yaml; copy it by hand"):
            choose_grid(lists, file)
        assert file.read_text() == (ROOT / "params.yaml").read_text()
    with pytest.raises(UserError, match=r"none.yaml not found"):
        choose_grid(tmp_path / "none.yaml", file)
