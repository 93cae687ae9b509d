"""A grid is completed: what DVC says, what is executed and how often, what failed, and the lock."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from pipeline.grid import complete as module
from pipeline.grid import tasks
from pipeline.grid import tuning as tuning_module
from pipeline.grid.complete import complete, grid_lock
from pipeline.grid.tasks import Task, unfinished_tasks
from pipeline.grid.tuning import SPACE, listed_tunings, tune, write_choice
from pipeline.params import load_params
from pipeline.runs import Run

ROOT = Path(__file__).parents[3]


def says(*lines: str, code: int = 0) -> list[str]:
    """A command in place of `dvc repro` that prints lines and its options, and exits."""
    return [sys.executable, "-c", f"import sys; print(*{lines!r}, *sys.argv[1:], sep='\\n'); sys.exit({code})"]


@pytest.mark.usefixtures("project")
def test_before_training_dvc_is_heard_only_where_data_are_made_or_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    params = load_params()
    embeds = ("Running stage 'data/dvc.yaml:scan':", "Running stage 'data/dvc.yaml:embed@tiny':", "> python -m stages.embed")
    monkeypatch.setattr(module, "REPRO", says(*embeds))
    assert module.assemble(params, quiet=True)
    assert capfd.readouterr().out == "grid: Running stage 'data/dvc.yaml:embed@tiny':\n"
    cells = "'grid/dvc.yaml:cell@tiny-sasrec-base'", "'grid/dvc.yaml:ablation@tiny-sasrec'", "'grid/dvc.yaml:aggregate'"
    for named in (cells[0], f"stages: {cells[0]} and {cells[1]}", f"stages: {cells[0]}, {cells[1]} and {cells[2]}"):
        monkeypatch.setattr(module, "REPRO", says("cell: not trained", f"ERROR: failed to reproduce {named}", code=255))
        assert not module.assemble(params, quiet=True)
        assert capfd.readouterr().out == ""
    for error in (
        "ERROR: failed to reproduce 'data/dvc.yaml:download@tiny'",
        f"ERROR: failed to reproduce stages: 'data/dvc.yaml:svd@tiny' and {cells[0]}",
        "ERROR: './dvc.lock' is invalid.",
        "no error at all",
    ):
        monkeypatch.setattr(module, "REPRO", says("download: clicks.csv: no such file", error, code=255))
        with pytest.raises(UserError, match=r"^`dvc repro grid/dvc.yaml` failed, see above; nothing was trained$"):
            module.assemble(params, quiet=True)
        assert capfd.readouterr().out == f"download: clicks.csv: no such file\n{error}\n"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("remote", [None, ("team", "/mnt/team")])
def test_missing_data_are_pulled_where_there_is_a_remote(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], remote: tuple[str, str] | None
) -> None:
    monkeypatch.setattr(module, "REPRO", says("it ran"))
    monkeypatch.setattr(module, "default_remote", lambda: remote)
    params = load_params()
    for folder in ("raw/tiny", "embeddings/tiny/random"):
        Path("data", folder).mkdir(parents=True, exist_ok=True)
        Path("data", folder, "sidecar.json").touch()
    assert module.assemble(params)
    assert capfd.readouterr().out == "it ran\n", "nothing is missing"
    Path("data/embeddings/tiny/random/sidecar.json").unlink()
    assert module.assemble(params)
    assert capfd.readouterr().out == ("it ran\n--pull\n" if remote else "it ran\n")


@pytest.mark.usefixtures("project")
def test_of_two_grids_on_one_scratch_the_second_is_refused_until_the_first_is_gone() -> None:
    holds = "from pipeline.grid.complete import grid_lock\nwith grid_lock():\n print(flush=True)\n input()"
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
    monkeypatch.setattr(module, "assemble", lambda params, quiet=False: not quiet)
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
