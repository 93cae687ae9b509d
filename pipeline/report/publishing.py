"""The grid's results in docs/results/<name>: cells, lists, report and figures, of committed code alone."""

import shutil
import subprocess
from pathlib import Path

import yaml

from common.errors import UserError
from pipeline.artifacts import atomic_directory, atomic_file, verify
from pipeline.grid.cells import listed_cells
from pipeline.grid.published import PUBLISH, PUBLISHED, RUNS, publish, restore
from pipeline.params import PARAMS_FILE, Params, choose_grid, read_yaml
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
        about = {"encoder": params.encoder, "preprocess": params.preprocess.model_dump(), "grid": params.grid.model_dump()}
        partial.write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")
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

    Raises UserError where nothing is published there, where it is damaged, and where it was made with another encoder or another
    preprocessing than params.yaml asks for; params.yaml is then as it was.
    """
    if not folder.is_dir():
        known = sorted(file.parent.name for file in PUBLISHED.glob(f"*/{RUNS}"))
        raise UserError(f"{folder} is not there; published are: {', '.join(known) or 'none'}")
    verify(folder, PUBLISH)  # before params.yaml is changed
    check_setting(folder)
    choose_grid(folder / LISTS)
    restored = restore(folder)
    return f"{len(restored)} cells of {folder} in grid/cells, its lists in params.yaml; next: `python -m stages.aggregate`"


def check_setting(folder: Path) -> None:
    """Raise UserError if params.yaml has another encoder or another preprocessing than the results in `folder` were made with.

    Cells know their encoder and training settings. Only this file says how ties of time were ordered.
    """
    published, today = read_yaml(folder / LISTS), read_yaml(PARAMS_FILE)
    for section in ("encoder", "preprocess"):
        then, now = published.get(section), today.get(section)
        if isinstance(then, dict) and isinstance(now, dict):
            other = [
                f"{section}.{name} {then[name]}, params.yaml {now[name]}"
                for name in then
                if now.get(name, then[name]) != then[name]
            ]
        else:
            other = [f"{section} {then}, params.yaml {now}"] if then not in (None, now) else []
        if other:
            raise UserError(f"{folder} was made with {other[0]}; change params.yaml first, or restore in another clone")
