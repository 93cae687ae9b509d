"""The grid on this machine: with OMP_NUM_THREADS set, its numbers do not depend on the runs in parallel; killed processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.errors import UserError
from pipeline.grid import tasks
from pipeline.grid import tuning as tuning_module
from pipeline.grid.cells import listed_cells
from pipeline.grid.execution import evaluated_in_parallel
from pipeline.grid.tasks import Local, Task, complete, grid_lock, run_all, unfinished_tasks
from pipeline.grid.tuning import SPACE, listed_tunings, tune, write_choice
from pipeline.params import load_params
from pipeline.runs import Run

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("value", ["", "0", "-1", "two", "4,2"])
def test_what_is_no_number_of_threads_is_one_line(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(UserError, match=rf"^OMP_NUM_THREADS is '{value}'; set it to a number of threads, or unset it$"):
        Local(2)


def says(*lines: str, code: int = 0) -> list[str]:
    """A command in place of `dvc repro` that prints lines and its options, and exits."""
    return [sys.executable, "-c", f"import sys; print(*{lines!r}, *sys.argv[1:], sep='\\n'); sys.exit({code})"]


@pytest.mark.usefixtures("project")
def test_before_training_dvc_is_heard_only_where_data_are_made_or_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    params = load_params()
    embeds = ("Running stage 'data/dvc.yaml:scan':", "Running stage 'data/dvc.yaml:embed@tiny':", "> python -m stages.embed")
    monkeypatch.setattr(tasks, "REPRO", says(*embeds))
    assert tasks.assemble(params, quiet=True)
    assert capfd.readouterr().out == "grid: Running stage 'data/dvc.yaml:embed@tiny':\n"
    cells = "'grid/dvc.yaml:cell@tiny-sasrec-base'", "'grid/dvc.yaml:ablation@tiny-sasrec'", "'grid/dvc.yaml:aggregate'"
    for named in (cells[0], f"stages: {cells[0]} and {cells[1]}", f"stages: {cells[0]}, {cells[1]} and {cells[2]}"):
        monkeypatch.setattr(tasks, "REPRO", says("cell: not trained", f"ERROR: failed to reproduce {named}", code=255))
        assert not tasks.assemble(params, quiet=True)
        assert capfd.readouterr().out == ""
    for error in (
        "ERROR: failed to reproduce 'data/dvc.yaml:download@tiny'",
        f"ERROR: failed to reproduce stages: 'data/dvc.yaml:svd@tiny' and {cells[0]}",
        "ERROR: './dvc.lock' is invalid.",
        "no error at all",
    ):
        monkeypatch.setattr(tasks, "REPRO", says("download: clicks.csv: no such file", error, code=255))
        with pytest.raises(UserError, match=r"^`dvc repro grid/dvc.yaml` failed, see above; nothing was trained$"):
            tasks.assemble(params, quiet=True)
        assert capfd.readouterr().out == f"download: clicks.csv: no such file\n{error}\n"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("remote", [None, ("team", "/mnt/team")])
def test_missing_data_are_pulled_where_there_is_a_remote(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], remote: tuple[str, str] | None
) -> None:
    monkeypatch.setattr(tasks, "REPRO", says("it ran"))
    monkeypatch.setattr(tasks, "default_remote", lambda: remote)
    params = load_params()
    for folder in ("raw/tiny", "embeddings/tiny/random"):
        Path("data", folder).mkdir(parents=True, exist_ok=True)
        Path("data", folder, "sidecar.json").touch()
    assert tasks.assemble(params)
    assert capfd.readouterr().out == "it ran\n", "nothing is missing"
    Path("data/embeddings/tiny/random/sidecar.json").unlink()
    assert tasks.assemble(params)
    assert capfd.readouterr().out == ("it ran\n--pull\n" if remote else "it ran\n")


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
    task = "Task('waits', ('waits',), (), Path.cwd())"
    code = f"from pathlib import Path; from pipeline.grid.tasks import Local, Task, run_all; run_all([{task}], Local(1))"
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


@pytest.mark.usefixtures("project")
def test_of_two_grids_on_one_scratch_the_second_is_refused_until_the_first_is_gone() -> None:
    holds = "from pipeline.grid.tasks import grid_lock\nwith grid_lock():\n print(flush=True)\n input()"
    command = [sys.executable, "-c", holds]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}) as first:
        assert first.stdout
        first.stdout.readline()
        with pytest.raises(UserError, match=f"another grid is running in .*process {first.pid} on "), grid_lock():
            pass
        first.kill()
    with grid_lock():
        pass


@dataclass
class Here:
    """An engine that calls a function in this process for each task, in order; it refuses to run one task twice.

    execute: returns whether the task succeeded.
    """

    execute: Callable[[Task], bool]
    jobs: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def submitting(self) -> Iterator[Callable[[Task], Future[bool]]]:
        yield self._submit

    def _submit(self, task: Task) -> Future[bool]:
        assert task.name not in self.names, f"{task.name} is executed again"
        self.names.append(task.name)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        task.log.write_text("prepare: the disk is full\n")
        future: Future[bool] = Future()
        future.set_result(self.execute(task))
        return future


@pytest.fixture
def no_dvc(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, of which DVC restores and builds nothing."""
    monkeypatch.setattr(tasks, "assemble", lambda params, quiet=False: not quiet)
    return project


@pytest.mark.usefixtures("no_dvc")
def test_a_task_that_succeeds_without_its_result_fails_and_is_not_executed_for_ever(
    set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """params.yaml changes after the first task, so the others succeed as other runs than those that the grid waits for."""
    found: list[str] = []
    monkeypatch.setattr(tasks, "evaluated_directory", lambda run: Path() if run.fingerprint in found else None)

    def execute(task: Task) -> bool:
        if len(engine.names) == 2:
            set_params({"train.epochs": 3})
        if len(engine.names) < 4:
            found.append({run.name: run.fingerprint for _, run in tasks.unfinished_runs(load_params())}[task.name])
        return len(engine.names) < 4

    engine = Here(execute)
    with pytest.raises(UserError) as raised:
        complete(load_params(), engine)
    assert len(engine.names) == 4
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"3 of 4 tasks failed; the first, {engine.names[3]}: prepare: the disk is full (")
    lost = "ended without its result: params.yaml or the code changed since the grid started; run the same command again"
    assert capfd.readouterr().out.endswith("".join(f"{name}: FAILED, {lost}\n" for name in engine.names[1:3]))
    assert [task.name for task in unfinished_tasks(load_params())] == [engine.names[0], engine.names[3]], "the others are done"


@pytest.mark.usefixtures("no_dvc")
def test_if_results_alone_are_missing_the_message_says_why() -> None:
    reason = r"4 of 4 tasks failed; the first, tiny-sasrec-base dim 16 seed 0: ended without its result: params\.yaml or the code"
    with pytest.raises(UserError, match=f"^{reason}"):
        complete(load_params(), Here(lambda task: True))


def space_of(text: str, set_params: Callable[..., None], **lists: Any) -> None:
    """Write grid/space.yaml, and tune Base and SpecTran with two trials."""
    SPACE.parent.mkdir(exist_ok=True)
    SPACE.write_text(text)
    lists = {"datasets": ["tiny"], "losses": ["info_nce"], "trials": 2} | lists
    set_params({f"grid.tuning.{name}": value for name, value in lists.items()})


@pytest.mark.usefixtures("no_dvc")
@pytest.mark.parametrize("with_choice", [True, False])
def test_tunings_and_then_tuned_runs_are_executed_once(
    set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch, with_choice: bool
) -> None:
    """with_choice: whether the task writes the choice too, as on this machine, or leaves that to the grid, as on a cluster."""
    space_of("train:\n  weight_decay: [0.0, 1.0e-4]\n", set_params)
    found: list[str] = []
    monkeypatch.setattr(tasks, "evaluated_directory", lambda run: Path() if run.fingerprint in found else None)
    monkeypatch.setattr(tuning_module, "_validation", validation)

    def execute(task: Task) -> bool:
        if task.name.endswith(" tuning"):
            (tuning,) = (one for one in listed_tunings(load_params()) if f"{one.name} tuning" == task.name)
            tune(tuning)
            if with_choice:
                write_choice(tuning)
        else:
            found.append(task.result.name)
        return True

    engine = Here(execute)
    # Two tunings, four runs of params.yaml, four with what was chosen.
    assert complete(load_params(), engine) == "10 tasks done"


def validation(run: Run) -> dict[str, Any]:
    """What training would return: more weight decay is better."""
    return {"state": "complete", "epochs": 3, "validation": 0.1 + run.settings["train"]["weight_decay"]}


@pytest.mark.usefixtures("no_dvc")
@pytest.mark.parametrize("restarted", [True, False])
def test_a_tuning_whose_trials_all_failed_is_one_line_and_the_others_go_on(
    set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], restarted: bool
) -> None:
    """restarted: the trials failed in an earlier grid, so that this one has nothing more to try."""
    space_of("train:\n  weight_decay: [0.0, 1.0e-4]\n", set_params)
    found: list[str] = []
    monkeypatch.setattr(tasks, "evaluated_directory", lambda run: Path() if run.fingerprint in found else None)
    diverged = {"state": "failed", "epochs": 0, "validation": None, "error": "the loss is nan"}
    monkeypatch.setattr(tuning_module, "_validation", lambda run: diverged if run.adapter == "base" else validation(run))
    (base, spectran) = listed_tunings(load_params())
    if restarted:
        tune(base)

    def execute(task: Task) -> bool:
        if not task.name.endswith(" tuning"):
            found.append(task.result.name)
            return True
        tune(base if task.name == "tiny-sasrec-base-info_nce tuning" else spectran)
        return True

    engine = Here(execute)
    with pytest.raises(UserError) as raised:
        complete(load_params(), engine)
    assert spectran.has_choice
    assert len(engine.names) == (1 if restarted else 2) + 4 + 2, "SpecTran's runs with what was chosen are executed"
    why = f"all 2 trials of tiny-sasrec-base-info_nce failed; {base.scratch} has their errors"
    again = "after fixing that, the same command tries them again"
    without = "`python -m stages.aggregate --partial` writes the report without them"
    expected = f"1 of 8 tasks failed; the first, tiny-sasrec-base-info_nce tuning: {why}; {again}; {without}"
    assert str(raised.value) == expected
    assert capfd.readouterr().out.endswith(f"tiny-sasrec-base-info_nce tuning: FAILED, {why}\n")
    assert "the loss is nan" in (base.scratch / "trial-0.json").read_text()
