"""Completes a grid: DVC restores the cells it has, an engine executes the missing tasks, and DVC builds cells and tables."""

import fcntl
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path

from common.dvc_state import RWLOCK, conflicted_lock_file, default_remote, mend_dvc_lock
from common.errors import UserError
from common.words import plural
from pipeline.artifacts import SIDECAR, scratch
from pipeline.grid.cells import listed_cells
from pipeline.grid.execution import NO_TRAINING
from pipeline.grid.local import Local
from pipeline.grid.tasks import Engine, Task, check_fit, tuning_task, unfinished_tasks
from pipeline.grid.tuning import AllFailedError, listed_tunings, write_choice
from pipeline.params import Params
from pipeline.runs import embeddings_directory, raw_directory, sequences_directory, spectrum_directory

ESTIMATE = [sys.executable, "-m", "stages.check", "--estimate"]
REPRO = [sys.executable, "-m", "dvc", "repro", "--keep-going", "grid/dvc.yaml"]
AGAIN = "after fixing that, the same command tries them again"
LOST = "ended without its result: params.yaml or the code changed since the grid started; run the same command again"
FAILED = re.compile(r"ERROR: failed to reproduce (stages: )?'grid/dvc\.yaml:[^']+'((, | and )'grid/dvc\.yaml:[^']+')*")


@contextmanager
def grid_lock() -> Iterator[None]:
    """Hold the grid's lock; raise UserError if another process has it. The kernel releases it when the holder dies."""
    lock = scratch() / "grid.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"another grid is running in {scratch()} ({file.read()}); wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def complete(params: Params, engine: Engine) -> str:
    """Restore cells from DVC's cache, train the missing runs, build cells and tables; return a summary in one line.

    If this machine has more than one task to do, an estimate of the time is printed first.

    Raises UserError if data cannot be made or an adapter does not fit, before anything is trained; and if a task or `dvc repro`
    failed.
    """
    if mend_dvc_lock():
        print(f"grid: removed {RWLOCK}, which a killed DVC left incomplete", flush=True)
    if conflict := conflicted_lock_file():
        raise UserError(conflict)
    print("grid: restoring cells from DVC's cache", flush=True)
    if assemble(params, quiet=True):
        return "nothing to train: all cells and tables are up to date"
    check_fit(params)
    source = "OMP_NUM_THREADS" if isinstance(engine, Local) and "OMP_NUM_THREADS" in os.environ else "its share of the cores"
    source = source if isinstance(engine, Local) else "resources.cores"
    print(f"grid: a run takes {plural(engine.threads, 'thread')} ({source})", flush=True)
    if isinstance(engine, Local) and len(_next_tasks(params)) > 1:
        # In a process of its own, because torch would hold memory, on a GPU too, as long as the grid runs.
        subprocess.run([*ESTIMATE, "--jobs", str(engine.jobs)], check=False)
    started: set[str] = set()
    failed: dict[str, str] = {}  # the name of a task -> why it failed, and what to do
    # In rounds, because the runs of tuned cells are known only after tuning.
    while todo := [task for task in _next_tasks(params) if task.name not in failed]:
        if lost := [task.name for task in todo if task.name in started]:
            # They would end in the same way for ever: tasks read params.yaml and the code anew, this process does not.
            failed |= dict.fromkeys(lost, LOST)
            print("".join(f"{name}: FAILED, {LOST}\n" for name in lost), end="", flush=True)
            continue
        started |= {task.name for task in todo}
        failed |= {task.name: f"{_last_line(task.log)} ({task.log}); {AGAIN}" for task in run_all(todo, engine)}
    for name, why in write_choices(params).items():
        if name not in failed:  # no task of it was left to execute
            started.add(name)
            failed[name] = f"{why}; {AGAIN}"
            print(f"{name}: FAILED, {why}", flush=True)
    assembled = assemble(params)
    if failed:
        name, why = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(started)} tasks failed; the first, {name}: {why}; "
            "`python -m stages.aggregate --partial` writes the report without them"
        )
    if not assembled:
        raise UserError("`dvc repro grid/dvc.yaml` failed, see above")
    return f"{len(started)} tasks done"


def _next_tasks(params: Params) -> list[Task]:
    """Write the choices of tunings that are done; return the tasks that are left, among them the runs with those choices."""
    write_choices(params)
    return unfinished_tasks(params)


def write_choices(params: Params) -> dict[str, str]:
    """Write the choices of tunings whose trials are all done; return why a tuning has none, by the name of its task.

    A tuning fails if none of its trials succeeded; more tasks cannot help it. Raises UserError if inputs are missing.
    """
    failed = {}
    for tuning in listed_tunings(params):
        if tuning.has_choice or not tuning.trials_done:
            continue
        try:
            write_choice(tuning)
        except AllFailedError as error:
            failed[tuning_task(tuning).name] = str(error)
    return failed


def run_all(tasks: list[Task], engine: Engine) -> list[Task]:
    """Execute tasks and print a line for each that ends; return those that failed."""
    failed: list[Task] = []
    start = time.monotonic()
    with engine.submitting() as submit:
        futures = {submit(task): task for task in tasks}
        for done, future in enumerate(_ended(set(futures)), start=1):
            task = futures[future]
            outcome = "done"
            if not future.result():
                failed.append(task)
                outcome = f"FAILED, {_last_line(task.log)}"
            minutes = (time.monotonic() - start) / 60 / done * (len(tasks) - done)
            running = min(engine.jobs, len(tasks) - done)
            print(
                f"[{done}/{len(tasks)}] {task.name}: {outcome} ({running} running, {len(failed)} failed, {minutes:.0f} min left)",
                flush=True,
            )
    return failed


def _ended(futures: set[Future[bool]]) -> Iterator[Future[bool]]:
    """Yield futures as they end.

    Waits are short, because Ctrl-C does not interrupt a longer wait of the main thread while Ray's threads run.
    """
    while futures:
        done, futures = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
        yield from done


def _last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"see {log}")


def assemble(params: Params, quiet: bool = False) -> bool:
    """Run `dvc repro` on the grid without training; return whether nothing is missing.

    DVC restores the cells of its cache, and builds cells from finished runs and tables from cells. If data of the grid's datasets
    are not here and there is a remote, DVC pulls what it has of them, and does not embed again what a colleague embedded.
    quiet: print only which stages of the data run.

    Raises UserError if quiet and something other than the grid's own stages failed, after printing what DVC said.
    """
    command = [*REPRO, "--pull"] if _lacks_data(params) and default_remote() else REPRO
    environment = os.environ | {NO_TRAINING: "1"}
    if not quiet:
        return subprocess.run(command, env=environment, check=False).returncode == 0
    said = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                said.append(line)
                if line.startswith("Running stage 'data/") and ":scan'" not in line:
                    print(f"grid: {line}", end="", flush=True)
        except BaseException:
            process.terminate()
            raise
    errors = [line for line in said if line.startswith("ERROR:")]
    if process.returncode and not (errors and all(FAILED.fullmatch(line.strip()) for line in errors)):
        print("".join(said), end="", flush=True)
        raise UserError("`dvc repro grid/dvc.yaml` failed, see above; nothing was trained")
    return process.returncode == 0


def _lacks_data(params: Params) -> bool:
    """Return whether a dataset of the grid has no raw files, sequences, embeddings or spectrum in the workspace."""
    folders = [
        folder
        for dataset in {cell.dataset for cell in listed_cells(params.grid)}
        for folder in (
            raw_directory(dataset),
            sequences_directory(dataset),
            embeddings_directory(dataset, params.encoder),
            spectrum_directory(dataset, params.encoder),
        )
    ]
    return not all((folder / SIDECAR).is_file() for folder in folders)
