"""Publishing the grid's results in docs/results/<name>: cells, lists, report and figures, built by committed code."""

import subprocess
from pathlib import Path

import yaml

from common.errors import UserError
from pipeline.artifacts import verify
from pipeline.grid.cells import listed_cells, read_cells
from pipeline.grid.lists import choose_grid
from pipeline.grid.published import PUBLISH, PUBLISHED, RUNS, publish, read_data, read_runs, restore
from pipeline.params import Params
from pipeline.report.leaders import comparison_files
from pipeline.report.users import GROUPED
from pipeline.report.write import FIGURES, REPORT_MARKDOWN, TABLES, write_report
from pipeline.runs import PACKAGES

LISTS = "grid.yaml"


def publish_grid(folder: Path, params: Params) -> str:
    """Write the report again, then replace `folder` by one with cells, lists, report and figures; return a summary in one line.

    If anything fails, `folder` stays as it is. Raises UserError if there is no cell, if a cell was built with other settings or
    data than those here, and if the code is not committed.
    """
    commit = committed_code()
    cells = [cell for cell in listed_cells(params.grid) if cell.exists]
    if not cells:
        raise UserError("there are no cells to publish; `python -m stages.grid` builds them")
    _, reported = write_report(params, partial=True)  # so that the report shows exactly the published cells
    if left_out := [cell.name for cell in cells if cell not in reported]:
        raise UserError(
            f"{', '.join(left_out)} was built with other settings or data than those here; run `dvc repro grid/dvc.yaml`"
        )
    about = {"encoder": params.encoder, "preprocess": params.preprocess.model_dump(), "grid": params.grid.model_dump()}
    others = {
        **comparison_files(read_cells(cells), max(params.evaluate.cutoffs), params.train),
        LISTS: yaml.safe_dump(about, sort_keys=False).encode(),
        GROUPED: (TABLES / GROUPED).read_bytes(),
        REPORT_MARKDOWN.name: REPORT_MARKDOWN.read_bytes(),
        **{f"{FIGURES.name}/{figure.name}": figure.read_bytes() for figure in sorted(FIGURES.glob("*.svg"))},
    }
    lines = publish([(cell, cell.runs(params)) for cell in cells], folder, commit, others)
    return f"{len(lines)} runs of {len(cells)} cells in {folder}, code of commit {commit}"


def committed_code() -> str:
    """Return the hash of HEAD. Raises UserError if a source file differs from it or is not in git, and without git's program."""
    status = ["git", "status", "--porcelain", "--untracked-files=all", "--ignored", "--", *PACKAGES]
    try:
        changed = subprocess.run(status, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("the program git is missing on this machine; install it, then publish from a clone") from None
    head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    if changed.returncode or head.returncode:
        raise UserError("git finds no commit here; publish from a clone, with the code committed")
    # Ignored files that are not Python sources, such as __pycache__, do not matter.
    if files := [line[3:] for line in changed.stdout.splitlines() if line[:2] != "!!" or line.endswith(".py")]:
        raise UserError(f"the code has uncommitted changes ({', '.join(files)}); commit it first")
    return head.stdout.strip()


def restore_grid(folder: Path) -> str:
    """Copy the lists of `folder` into params.yaml and its cells into grid/cells; return a summary in one line.

    Raises UserError, and leaves params.yaml unchanged, if nothing is published there, if the files are damaged, or if the results
    were built with another encoder or another preprocessing than params.yaml asks for.
    """
    if not folder.is_dir():
        known = sorted(file.parent.name for file in PUBLISHED.glob(f"*/{RUNS}"))
        raise UserError(f"{folder} does not exist; published results: {', '.join(known) or 'none'}")
    verify(folder, PUBLISH)
    read_runs(folder)
    read_data(folder)  # all three before params.yaml is changed
    choose_grid(folder / LISTS)
    restored = restore(folder)
    return f"{len(restored)} cells of {folder} in grid/cells, its lists in params.yaml; next: `python -m stages.aggregate`"
