"""The grid, and DVC with it, killed at random moments: the next grid finishes, and the results are the same."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import PARTIAL
from tests.clone import Project, copy_repository, write_params

KILLS = 5
GRID = (sys.executable, "-m", "stages.grid", "--jobs", "2")
COMPARED = ("history.csv", "training.json", "config.json", "analysis.json", "model.safetensors")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dvc")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose data is there, and whose grid is not."""
    root = tmp_path_factory.mktemp("clone") / "project"
    params = copy_repository(root)
    params["grid"]["seeds"] = [0]
    write_params(root, params)
    made = Project(root)
    made.run("git", "init", "-q")
    made.commit()
    made.run("dvc", "repro", "-q", "data/dvc.yaml:svd@demo")
    made.commit()
    return made


def results(root: Path) -> dict[str, object]:
    """What does not hold seconds: ranks and files of the cells, and Table 2."""
    found: dict[str, object] = {"table2": (root / "metrics/tables/table2.md").read_text()}
    for file in sorted((root / "grid/cells").rglob("*")):
        if file.name in COMPARED:
            found[str(file.relative_to(root))] = file.read_bytes()
        if file.name == "ranks.parquet":
            found[str(file.relative_to(root))] = pl.read_parquet(file).rows()
    return found


def test_a_grid_that_is_killed_with_dvc_ends_as_one_that_is_not(project: Project) -> None:
    other = Project(project.root.with_name("other"))
    shutil.copytree(project.root, other.root, symlinks=True)
    start = time.monotonic()
    other.run(*GRID)
    seconds = time.monotonic() - start
    chance = random.Random(0)
    for _ in range(KILLS):
        with subprocess.Popen(
            GRID,
            cwd=project.root,
            env=project.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.1, 0.8) * seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    (project.root / ".dvc/tmp/rwlock").write_text("")  # as one kill in 60 leaves it
    printed = project.run(*GRID)
    assert "removed .dvc/tmp/rwlock, which a killed DVC left incomplete" in printed
    assert results(project.root) == results(other.root)
    assert not [path for path in project.root.rglob(".*") if PARTIAL.fullmatch(path.name)]
