"""The grid's tasks, executed several at a time. Each runs in its own process, with its result in scratch and its output in a log.

DVC keeps the results: it restores cells from its cache, and builds cells and tables from the runs that tasks left in scratch.
"""

import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from common.dvc_state import RWLOCK, conflicted_lock_file, default_remote, mend_dvc_lock
from common.errors import UserError
from common.words import plural
from pipeline.artifacts import SIDECAR, scratch
from pipeline.grid.cells import Cell, listed_cells
from pipeline.grid.execution import NO_TRAINING, evaluated_directory, threads_per_run
from pipeline.grid.fit import refuse_unfit
from pipeline.grid.tuning import SPACE, AllFailedError, Tuning, listed_tunings, write_choice
from pipeline.params import Params
from pipeline.runs import Run, embeddings_directory, raw_directory, sequences_directory, spectrum_directory

ESTIMATE = [sys.executable, "-m", "stages.check", "--estimate"]
REPRO = [sys.executable, "-m", "dvc", "repro", "--keep-going", "grid/dvc.yaml"]
AGAIN = "after fixing that, the same command tries them again"
LOST = "ended without its result: params.yaml or the code changed since the grid started; run the same command again"


FAILED = re.compile(r"ERROR: failed to reproduce (stages: )?'grid/dvc\.yaml:[^']+'((, | and )'grid/dvc\.yaml:[^']+')*")


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


@dataclass(frozen=True)
class Task:
    """A task: `python -m` with `command`, which reads `inputs` and writes `result`, a directory in scratch.

    Tasks are idempotent, and resume after an interruption if their files in scratch still exist.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    result: Path

    @property
    def log(self) -> Path:
        """The file of the task's output."""
        return scratch() / "logs" / f"{self.name.replace(' ', '-')}.log"


def training_task(run: Run, cell: Cell, params: Params) -> Task:
    """Return the task that trains and tests a run of a cell."""
    command = ["stages.prepare", run.dataset, run.backbone, run.adapter, "--seed", str(run.seed)]
    if cell.loss:
        command += ["--tuned", cell.loss]
    else:
        command += ["--dim", str(run.dim)]
        if variant := run.settings["adapter"].get("variant"):
            command += ["--variant", variant]
    inputs = [run.sequences, run.spectrum]
    if tuning := cell.tuning(params):
        inputs += [tuning.file, SPACE]
    name = f"{run.name} tuned {cell.loss}" if cell.loss else run.name
    return Task(name, tuple(command), tuple(inputs), run.scratch)


def tuning_task(tuning: Tuning) -> Task:
    """Return the task that runs the missing trials and second runs of a tuning."""
    run = tuning.run({})
    inputs = [run.sequences, run.spectrum, SPACE, *([tuning.scratch] if tuning.scratch.is_dir() else [])]
    return Task(_tuning_name(tuning), tuning.arguments, tuple(inputs), tuning.scratch)


def _tuning_name(tuning: Tuning) -> str:
    return f"{tuning.name} tuning"


def write_choices(params: Params) -> tuple[list[Tuning], dict[str, str]]:
    """Write the choices of tunings whose trials are all done; return the tunings that still have trials to run, and the failed.

    A failed tuning is one without a trial that succeeded: the name of its task -> what is wrong, and where its errors are. More
    tasks cannot help it. Raises UserError if inputs are missing.
    """
    missing, failed = [], {}
    for tuning in listed_tunings(params):
        if tuning.has_choice:
            continue
        if not tuning.trials_done:
            missing.append(tuning)
            continue
        try:
            write_choice(tuning)
        except AllFailedError as error:
            failed[_tuning_name(tuning)] = str(error)
    return missing, failed


def unfinished_tasks(params: Params) -> list[Task]:
    """Return the tasks of tunings without a choice, and of runs that are not in a cell, in scratch or published.

    Runs whose settings are still to be tuned are left out, and so are tunings whose trials all failed. If all trials of a tuning
    are done, its choice is written. Raises UserError if inputs are missing.
    """
    tasks = {tuning.name: tuning_task(tuning) for tuning in write_choices(params)[0]}
    for cell, run in unfinished_runs(params):
        tasks[run.fingerprint] = training_task(run, cell, params)
    return list(tasks.values())


def unfinished_runs(params: Params) -> list[tuple[Cell, Run]]:
    """Return the runs that are not in a cell of today's settings, in scratch or published, each once, with the first such cell.

    Runs whose settings are still to be tuned are left out. Raises UserError if inputs are missing.
    """
    found: dict[str, tuple[Cell, Run]] = {}
    for cell in listed_cells(params.grid):
        tuning = cell.tuning(params)
        if (tuning is None or tuning.has_choice) and not (cell.exists and not cell.differs(params)):
            for run in cell.runs(params):
                if run.fingerprint not in found and evaluated_directory(run) is None:
                    found[run.fingerprint] = (cell, run)
    return list(found.values())


def check_fit(params: Params) -> None:
    """Raise UserError if runs that are still to be made cannot be built with their dim, before any of them is trained."""
    runs: dict[str, list[Run]] = {}
    for tuning in listed_tunings(params):
        if not tuning.has_choice:
            runs.setdefault("grid.dim", []).append(tuning.run({}))
    for cell, run in unfinished_runs(params):
        if run.seed == params.grid.seeds[0]:  # another seed has the same model
            runs.setdefault(cell.dim_option, []).append(run)
    for option, planned in runs.items():
        refuse_unfit(option, planned)


class Engine(Protocol):
    """Executes tasks: `Local` on this machine, `pipeline.grid.cluster.Cluster` on a cluster."""

    @property
    def jobs(self) -> int:
        """The number of tasks that run at a time."""

    @property
    def threads(self) -> int:
        """The number of threads of a task."""

    def submitting(self) -> AbstractContextManager[Callable[[Task], Future[bool]]]:
        """Yield a function that submits a task; the result of its future is whether the task succeeded."""


class Local:
    """An engine that runs `jobs` processes at a time on this machine. They share its cores and are distributed over its GPUs.

    A process takes OMP_NUM_THREADS threads if that is set, else an equal share of the cores.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.threads = threads_per_run(jobs)
        self.gpus = visible_gpus()
        self.slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(jobs):
            self.slots.put(slot)
        self.processes: set[subprocess.Popen[bytes]] = set()

    @contextmanager
    def submitting(self) -> Iterator[Callable[[Task], Future[bool]]]:
        """Yield a function that submits a task; the result of its future is whether the task succeeded.

        Leaving the context early, for example by Ctrl-C, stops the processes; their finished epochs are kept.
        """
        pool = ThreadPoolExecutor(self.jobs)
        try:
            yield lambda task: pool.submit(self._execute, task)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(self.processes):
                process.terminate()
            pool.shutdown()

    def _execute(self, task: Task) -> bool:
        slot = self.slots.get()
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        command = [sys.executable, "-m", *task.command]
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            self.processes.add(process)
            try:
                status = process.wait()
                if status < 0:  # the log ends wherever the process was
                    killed = f"\nkilled by {signal.Signals(-status).name}; if memory ran out, use fewer --jobs\n"
                    output.write(killed.encode())
                return status == 0
            finally:
                self.processes.discard(process)
                self.slots.put(slot)


def visible_gpus() -> list[str]:
    """Return the GPUs that may be used, in the notation of CUDA_VISIBLE_DEVICES; [] without a GPU."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return listed.split(",") if listed else []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


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
    if isinstance(engine, Local) and len(unfinished_tasks(params)) > 1:
        # In a process of its own, because torch would hold memory, on a GPU too, as long as the grid runs.
        subprocess.run([*ESTIMATE, "--jobs", str(engine.jobs)], check=False)
    started: set[str] = set()
    failed: dict[str, str] = {}  # the name of a task -> why it failed, and what to do
    # In rounds, because the runs of tuned cells are known only after tuning.
    while todo := [task for task in unfinished_tasks(params) if task.name not in failed]:
        if lost := [task.name for task in todo if task.name in started]:
            # They would end in the same way for ever: tasks read params.yaml and the code anew, this process does not.
            failed |= dict.fromkeys(lost, LOST)
            print("".join(f"{name}: FAILED, {LOST}\n" for name in lost), end="", flush=True)
            continue
        started |= {task.name for task in todo}
        failed |= {task.name: f"{_last_line(task.log)} ({task.log}); {AGAIN}" for task in run_all(todo, engine)}
    for name, why in write_choices(params)[1].items():
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
