"""The grid, disturbed in every way that a busy machine knows: the next grid finishes, and the results are the same."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import psutil
import pytest

from pipeline.artifacts import PARTIAL
from tests.clone import Project, copy_repository, write_params

GRID = (sys.executable, "-m", "stages.grid", "--jobs", "2")
COMPARED = ("history.csv", "training.json", "config.json", "analysis.json", "model.safetensors")
SECONDS = 600  # until a moment is taken never to come

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dvc")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose data is there, and whose grid of two runs is not."""
    root = tmp_path_factory.mktemp("clone") / "project"
    params = copy_repository(root)
    params["grid"]["seeds"] = [0]
    params["train"] |= {"epochs": 60, "patience": 60}  # seconds, so that there is a middle to be killed in
    write_params(root, params)
    made = Project(root)
    made.run("git", "init", "-q")
    made.run("dvc", "repro", "-q", "data/dvc.yaml:svd@demo")
    made.commit()
    return made


def results(root: Path) -> dict[str, object]:
    """What does not hold seconds: ranks and files of the cells, and Table 2."""
    found: dict[str, object] = {"table2": (root / "metrics/tables/table2.md").read_text()}
    for file in sorted((root / "grid/cells").rglob("*")):
        if file.name in COMPARED:
            found[str(file.relative_to(root))] = re.sub(rb'"inference_seconds": .*', b"", file.read_bytes())
        if file.name == "ranks.parquet":
            found[str(file.relative_to(root))] = pl.read_parquet(file).rows()
    return found


def start(project: Project) -> subprocess.Popen[str]:
    return subprocess.Popen(
        GRID,
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(moment: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + SECONDS
    while not moment():
        assert process.poll() is None, f"the grid ended before the moment came:\n{process.stdout and process.stdout.read()}"
        assert time.monotonic() < until
        time.sleep(0.02)


def trainings(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the grid that train."""
    found = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "stages.prepare" in child.cmdline():
                found.append(child)
    return found


def test_a_grid_that_is_disturbed_ends_as_one_that_is_not(project: Project) -> None:
    """It is killed with DVC at three moments, one of its two trainings is killed, and a second grid is started meanwhile.

    The kills wait for something to happen and a random part of a second, and not for a time: a busy machine takes many times as
    long. Each grid continues where the last one was killed.
    """
    other = Project(project.root.with_name("other"))
    shutil.copytree(project.root, other.root, symlinks=True)
    chance = random.Random(0)
    lock, scratch, cells = project.root / ".dvc/tmp/rwlock", project.root / ".scratch", project.root / "grid/cells"

    def kill_at(moment: Callable[[], bool]) -> None:
        with start(project) as grid:
            wait_until(moment, grid)
            time.sleep(chance.random() / 4)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(grid.pid, signal.SIGKILL)

    kill_at(lambda: lock.is_file() and lock.stat().st_size > 2)  # DVC is at work
    kill_at(lambda: any(scratch.glob("unfinished/*/state.pt")))  # an epoch is finished

    with start(project) as grid:
        wait_until(lambda: len(trainings(grid)) == 2, grid)
        trainings(grid)[0].kill()
        refused = project.run(*GRID, fails=True)
        printed = grid.communicate(timeout=SECONDS)[0]
    assert grid.returncode == 1
    assert re.fullmatch(rf"grid: another grid is running in .*\(process {grid.pid} on .*\); wait for it, or stop it\n", refused)
    assert len(re.findall(r"^\[./2\] .*: FAILED, killed by SIGKILL; ", printed, re.MULTILINE)) == 1
    assert re.search(r"^\[./2\] .*: done \(", printed, re.MULTILINE), "the other one goes on"
    assert re.fullmatch(
        r"grid: 1 of 2 tasks failed; the first, .*: killed by SIGKILL; .* \(.*\.log\); .*", printed.splitlines()[-1]
    )
    assert len(list(cells.glob("*/sidecar.json"))) == 1

    kill_at(lambda: len(list(cells.glob("*/sidecar.json"))) == 2)  # DVC moves the last cell into its cache, or writes the report
    lock.write_text("")  # as one kill in 60 leaves it

    printed = project.run(*GRID)
    assert "removed .dvc/tmp/rwlock, which a killed DVC left incomplete" in printed
    other.run(*GRID)
    assert results(project.root) == results(other.root)
    assert not [path for path in project.root.rglob(".*") if PARTIAL.fullmatch(path.name)]
