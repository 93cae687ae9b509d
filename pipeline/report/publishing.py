"""The grid's results in docs/results/<name>: cells, lists, report and figures, of committed code alone."""

import shutil
import subprocess
from pathlib import Path

import yaml

from common.errors import UserError
from pipeline.artifacts import atomic_directory, atomic_file, verify
from pipeline.grid.cells import listed_cells
from pipeline.grid.published import PUBLISH, PUBLISHED, RUNS, publish, restore
from pipeline.params import Params, choose_grid
from pipeline.report.write import FIGURES, REPORT_MARKDOWN, write_report

LISTS = "grid.yaml"
CODE = ("common", "models", "pipeline", "stages")


def publish_grid(folder: Path, params: Params) -> str:
    """Copy cells, lists, and a report and figures made of them anew into `folder`; return what was done in one line.

    Raises UserError where there is no cell, where one was made with other settings than those of params.yaml, and where the code
    that makes the numbers is not committed.
    """
    commit = committed_code()
    cells = [cell for cell in listed_cells(params.grid) if cell.exists]
    if not cells:
        raise UserError("no cell is there; `python -m stages.grid` makes them")
    _, reported = write_report(params, partial=True)  # anew: the report is of the very cells that are published
    if left_out := [cell.name for cell in cells if cell not in reported]:
        raise UserError(f"{', '.join(left_out)} was made with other settings than params.yaml's; `dvc repro grid/dvc.yaml`")
    lines = publish([(cell, cell.runs(params)) for cell in cells], folder, commit)
    with atomic_file(folder / LISTS) as partial:
        partial.write_text(yaml.safe_dump({"grid": params.grid.model_dump()}, sort_keys=False), encoding="utf-8")
    shutil.copyfile(REPORT_MARKDOWN, folder / REPORT_MARKDOWN.name)
    with atomic_directory(folder / FIGURES.name) as directory:
        for figure in FIGURES.glob("*.svg"):
            shutil.copyfile(figure, directory / figure.name)
    return f"{len(lines)} runs of {len(cells)} cells in {folder}, code of commit {commit}"


def committed_code() -> str:
    """The commit that has the code which makes the numbers. Raises UserError where a file of it is changed or not in git."""
    status = ["git", "status", "--porcelain", "--untracked-files=all", "--ignored", "--", *CODE]
    changed = subprocess.run(status, capture_output=True, text=True, check=False)
    head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    if changed.returncode or head.returncode:
        raise UserError("git finds no commit here; publish from a clone, with the code committed")
    # Of what git ignores, the compiled files of Python are no source.
    if files := [line[3:] for line in changed.stdout.splitlines() if line[:2] != "!!" or line.endswith(".py")]:
        raise UserError(f"the code that makes the numbers is not what is committed ({', '.join(files)}); commit it first")
    return head.stdout.strip()


def restore_grid(folder: Path) -> str:
    """Put the lists of `folder` into params.yaml and its cells into grid/cells; return what was done in one line.

    Raises UserError where nothing is published there, and where it is damaged; params.yaml is then as it was.
    """
    if not folder.is_dir():
        known = sorted(file.parent.name for file in PUBLISHED.glob(f"*/{RUNS}"))
        raise UserError(f"{folder} is not there; published are: {', '.join(known) or 'none'}")
    verify(folder, PUBLISH)  # before params.yaml is changed
    choose_grid(folder / LISTS)
    restored = restore(folder)
    return f"{len(restored)} cells of {folder} in grid/cells, its lists in params.yaml; next: `python -m stages.aggregate`"
