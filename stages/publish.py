"""Keep the grid's results in git, so that anyone can recheck them: `python -m stages.publish office` -> docs/results/office.

`--restore` brings them back: the grid's lists to params.yaml and the cells to grid/cells, without weights; then
`python -m stages.aggregate` makes tables, tests, figures and report of them again, and no run of theirs is trained again.
"""

import shutil
import subprocess
from argparse import ArgumentParser
from pathlib import Path

import yaml

from common.errors import UserError
from common.names import check_form
from pipeline.artifacts import atomic_directory, atomic_file
from pipeline.grid.cells import listed_cells
from pipeline.grid.published import PUBLISHED, RUNS, publish, restore
from pipeline.params import Params, choose_grid, load_params
from pipeline.runs import EVALUATION_CODE, TRAINING_CODE
from stages import run
from stages.aggregate import FIGURES, REPORT_MARKDOWN

LISTS = "grid.yaml"


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the folder in docs/results")
    parser.add_argument("--restore", action="store_true", help="from there, not to it")
    given = parser.parse_args()
    folder = PUBLISHED / check_form("folder", given.name)
    if not given.restore:
        return put(folder, load_params())
    if not (folder / RUNS).is_file():
        known = sorted(file.parent.name for file in PUBLISHED.glob(f"*/{RUNS}"))
        raise UserError(f"{folder} holds no {RUNS}; published are: {', '.join(known) or 'none'}")
    choose_grid(folder / LISTS)
    restored = restore(folder)
    return f"{len(restored)} cells of {folder} in grid/cells, its lists in params.yaml; next: `python -m stages.aggregate`"


def put(folder: Path, params: Params) -> str:
    commit = committed_code()
    cells = [cell for cell in listed_cells(params.grid) if cell.exists]
    if not cells:
        raise UserError("no cell is there; `python -m stages.grid` makes them")
    if not REPORT_MARKDOWN.is_file():
        raise UserError(f"{REPORT_MARKDOWN} is missing; `python -m stages.aggregate` makes it")
    lines = publish([(cell, cell.runs(params)) for cell in cells], folder, commit)
    with atomic_file(folder / LISTS) as partial:
        partial.write_text(yaml.safe_dump({"grid": params.grid.model_dump()}, sort_keys=False), encoding="utf-8")
    shutil.copyfile(REPORT_MARKDOWN, folder / REPORT_MARKDOWN.name)
    with atomic_directory(folder / FIGURES.name) as directory:
        for figure in FIGURES.glob("*.svg"):
            shutil.copyfile(figure, directory / figure.name)
    return f"{len(lines)} runs of {len(cells)} cells in {folder}, code of commit {commit}"


def committed_code() -> str:
    """The commit that has the code which makes the numbers. Raises UserError where that code is changed."""
    code = [*TRAINING_CODE, *EVALUATION_CODE, "models/adapters", "models/backbones", "models/losses"]
    changed = subprocess.run(["git", "diff", "--name-only", "HEAD", "--", *code], capture_output=True, text=True, check=False)
    if changed.returncode or changed.stdout:
        files = ", ".join(changed.stdout.split()) or "git finds no commit here"
        raise UserError(f"the code that makes the numbers is not what is committed ({files}); commit it first")
    return subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run(main)
