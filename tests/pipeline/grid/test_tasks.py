"""The grid on this machine: a run's number of threads, and so its numbers, do not depend on the runs in parallel."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import UserError
from pipeline.artifacts import PARTIAL, verify
from pipeline.grid.cells import listed_cells
from pipeline.grid.execution import evaluated, evaluated_in_parallel, threads_per_run
from pipeline.grid.tasks import Local, Task, run_all, unfinished_tasks
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training import loop

ROOT = Path(__file__).parents[3]


def test_a_run_takes_the_users_threads_or_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_per_run(jobs) for jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_per_run(jobs) for jobs in (1, 2, 8)] == [3, 3, 3]


@pytest.mark.parametrize("value", ["", "0", "-1", "two", "4,2"])
def test_what_is_no_number_of_threads_is_one_line(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(UserError, match=rf"^OMP_NUM_THREADS is '{value}'; set it to a number of threads, or unset it$"):
        Local(2)


def weights() -> dict[str, bytes]:
    return {str(file.relative_to(".scratch")): file.read_bytes() for file in Path(".scratch/runs").rglob("model.safetensors")}


def test_a_task_that_is_killed_is_one_line_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Path("dies.py").write_text("import os\nprint('epoch 3 of 10', end='', flush=True)\nos.kill(os.getpid(), 9)\n")
    Path("works.py").write_text("open('result', 'a').write('made')\n")
    tasks = [Task(name, (name,), (), tmp_path) for name in ("dies", "works")]
    assert run_all(tasks, Local(2)) == tasks[:1]
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == 2
    assert (
        sum(": dies: FAILED, killed by SIGKILL; if memory ran out, use fewer --jobs (" in f": {line[6:]}" for line in printed)
        == 1
    )
    assert tasks[0].log.read_text().startswith("epoch 3 of 10\n")
    assert Path("result").read_text() == "made"


@pytest.mark.usefixtures("project")
def test_of_two_that_need_the_same_run_one_trains_it(monkeypatch: pytest.MonkeyPatch, set_params: Callable[..., None]) -> None:
    """Else one would put its directory in place of the other's while that is tested."""
    set_params({"train.epochs": 1, "grid.adapters": ["base"], "grid.seeds": [0]})
    params = load_params()
    (cell,) = listed_cells(params.grid)
    (run,) = cell.runs(params)
    trainings, train = [], loop.train_run

    def slowly(run: Run) -> None:
        trainings.append(run)
        time.sleep(0.5)
        train(run)

    monkeypatch.setattr(loop, "train_run", slowly)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(evaluated, [run] * 3)) == [run.scratch] * 3
    assert trainings == [run]


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_two_processes_that_build_the_same_cell_leave_one_whole_cell(set_params: Callable[..., None]) -> None:
    set_params({"train.epochs": 2, "grid.seeds": [0]})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.cell", "tiny", "sasrec", "base"]
    (cell, _) = listed_cells(load_params().grid)
    found = []
    for count in (1, 2, 2):
        shutil.rmtree(".scratch", ignore_errors=True)
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(count)
        ]
        printed = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * count, printed
        verify(cell.directory, cell.command)
        assert not [path for path in Path.cwd().rglob(".*") if PARTIAL.fullmatch(path.name)]
        assert not list(Path(".scratch/unfinished").glob("*"))
        files = ("history.csv", "training.json", "config.json", "model.safetensors")
        found.append({str(file): file.read_bytes() for file in cell.directory.rglob("*") if file.name in files})
        found[-1]["ranks"] = (cell.directory / "ranks.parquet").read_bytes()
    assert len(found[0]) == 5
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_one_job_and_two_give_the_same_weights(
    project: Path, set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With OMP_NUM_THREADS set, trained by the grid's jobs and by a cell that trains its seeds in parallel."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    set_params({"grid.adapters": ["base"], "train.epochs": 2})
    found = []
    for jobs in (1, 2):
        shutil.rmtree(".scratch", ignore_errors=True)
        assert run_all(unfinished_tasks(load_params()), Local(jobs)) == []
        assert {file.read_text().split('"threads": ')[1][0] for file in Path(".scratch/runs").rglob("run.json")} == {"1"}
        found.append(weights())
    shutil.rmtree(".scratch")
    (cell,) = listed_cells(load_params().grid)
    evaluated_in_parallel(cell.runs(load_params()))
    assert len(found[0]) == 2
    assert found[0] == found[1] == weights()
    assert project.is_dir()
