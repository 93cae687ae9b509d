"""Every task of the grid, several at a time: each in a process of its own, its result in scratch, its output in a log.

DVC stays the keeper of results: what it can restore is restored, and what is trained here it moves into place.
"""

import fcntl
import os
import platform
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

from common.errors import UserError
from pipeline.artifacts import RWLOCK, mend_dvc_lock, scratch
from pipeline.grid.cells import Cell, listed_cells
from pipeline.grid.execution import NO_TRAINING, ready, threads_per_run
from pipeline.grid.tuning import SPACE, Tuning, listed_tunings, write_choice
from pipeline.params import Params
from pipeline.runs import Run

REPRO = [sys.executable, "-m", "dvc", "repro", "--keep-going", "grid/dvc.yaml"]


def assemble(quiet: bool = False) -> bool:
    """`dvc repro` of the grid without training: DVC restores what it has, finished runs become cells, cells become tables.

    Returns whether nothing is missing.
    """
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(REPRO, env=os.environ | {NO_TRAINING: "1"}, stdout=output, stderr=output, check=False).returncode == 0


@contextmanager
def grid_lock() -> Iterator[None]:
    """Raise UserError where another grid works on this scratch. When its holder dies, the kernel lets go of it."""
    lock = scratch() / "grid.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"another grid is at work on {scratch()} ({file.read()}); wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


@dataclass(frozen=True)
class Task:
    """What an engine executes: `python -m` and `command`, which reads `inputs` and leaves `result`, a directory of scratch.

    A task that was cut off goes on where it was, if what it left under scratch is still there; done twice, it is done once.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    result: Path

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return scratch() / "logs" / f"{self.name.replace(' ', '-')}.log"


def training(run: Run, cell: Cell, params: Params) -> Task:
    """Train and test a run of a cell into scratch."""
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
    """Make the trials and second runs of a tuning that are not yet in scratch."""
    run = tuning.run({})
    inputs = [run.sequences, run.spectrum, SPACE, *([tuning.scratch] if tuning.scratch.is_dir() else [])]
    return Task(f"{tuning.name} tuning", tuple(tuning.command.split()[2:]), tuple(inputs), tuning.scratch)


def unfinished(params: Params) -> list[Task]:
    """Tunings without a choice; and runs with their settings chosen that are not in a cell in place, in scratch or published.

    Choices are written of tunings whose trials are all there. Raises UserError where inputs are missing.
    """
    tasks: dict[str, Task] = {}
    for tuning in listed_tunings(params):
        if not tuning.has_choice:
            if tuning.trials_done:
                write_choice(tuning)
            else:
                tasks[tuning.name] = tuning_task(tuning)
    for cell in listed_cells(params.grid):
        decided_by = cell.tuning(params)
        if not cell.exists and not (decided_by and decided_by.name in tasks):
            for run in cell.runs(params):
                if not ready(run):
                    tasks.setdefault(run.fingerprint, training(run, cell, params))
    return list(tasks.values())


class Engine(Protocol):
    """Who executes tasks: this machine (`Local`), or a cluster (`pipeline.grid.cluster`)."""

    @property
    def jobs(self) -> int:
        """How many tasks run at a time."""

    @property
    def threads(self) -> int:
        """How many threads a task takes."""

    def submitting(self) -> AbstractContextManager[Callable[[Task], Future[bool]]]:
        """Give a function that submits a task, whose future says whether it succeeded."""


class Local:
    """A machine: `jobs` processes at a time, which share its cores and take its GPUs, where it has any, in turns.

    A process takes OMP_NUM_THREADS threads where that is set, else its share of the cores.
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
        """Yield a function that submits a task, whose future says whether it succeeded.

        Whoever leaves early, by Ctrl-C say, stops the processes; their finished epochs are kept.
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
                return process.wait() == 0
            finally:
                self.processes.discard(process)
                self.slots.put(slot)


def visible_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return listed.split(",") if listed else []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def run_all(tasks: list[Task], engine: Engine) -> list[Task]:
    """Execute tasks, a line for each that ends; return those that failed."""
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
    """Futures as they end. Never asleep for long: with Ray's threads about, Ctrl-C does not wake the one that waits here."""
    while futures:
        done, futures = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
        yield from done


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"see {log}")


def complete(params: Params, engine: Engine) -> str:
    """Restore what DVC has, train what is missing and put everything in place; return what was done in one line.

    Raises UserError where a task or `dvc repro` failed.
    """
    if mend_dvc_lock():
        print(f"grid: {RWLOCK}, left incomplete by a DVC that was killed, is removed", flush=True)
    print("grid: restoring what DVC has", flush=True)
    if assemble(quiet=True):
        return "everything was in place"
    source = "OMP_NUM_THREADS" if isinstance(engine, Local) and "OMP_NUM_THREADS" in os.environ else "its share of the cores"
    source = source if isinstance(engine, Local) else "resources.cores"
    print(f"grid: a run takes {engine.threads} thread{'s' if engine.threads > 1 else ''} ({source})", flush=True)
    done = 0
    failed: dict[str, Task] = {}
    # In rounds: what tuning chose decides what is trained.
    while todo := [task for task in unfinished(params) if task.name not in failed]:
        failed |= {task.name: task for task in run_all(todo, engine)}
        done += len(todo)
    assembled = assemble()
    if failed:
        logs = ", ".join(str(task.log) for task in list(failed.values())[:3]) + (", …" if len(failed) > 3 else "")
        raise UserError(
            f"{len(failed)} of {done} tasks failed ({logs}); the rest is in place: `python -m stages.aggregate --partial`"
        )
    if not assembled:
        raise UserError("`dvc repro grid/dvc.yaml` failed, see above")
    return f"{done} tasks done"
