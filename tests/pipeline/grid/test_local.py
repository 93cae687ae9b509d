"""The grid on this machine: with OMP_NUM_THREADS set, its numbers do not depend on the runs in parallel; killed processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.errors import UserError
from pipeline.grid.cells import listed_cells
from pipeline.grid.complete import run_all
from pipeline.grid.execution import evaluated_in_parallel
from pipeline.grid.local import Local
from pipeline.grid.tasks import Task, unfinished_tasks
from pipeline.params import load_params

ROOT = Path(__file__).parents[3]


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


def test_a_grid_that_is_terminated_takes_its_tasks_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    Path("waits.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    task = "tasks.Task('waits', ('waits',), (), Path.cwd())"
    imports = "from pipeline.grid import complete, local, tasks; from pathlib import Path"
    code = f"{imports}; complete.run_all([{task}], local.Local(1))"
    with subprocess.Popen([sys.executable, "-c", f"from stages import run; run(lambda: exec({code!r}))"]) as grid:
        while not (Path("pid").is_file() and Path("pid").read_text()):
            assert grid.poll() is None
            time.sleep(0.05)
        grid.terminate()
        assert grid.wait(60) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(int(Path("pid").read_text()))


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
