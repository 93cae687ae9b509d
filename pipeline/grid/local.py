"""The grid's engine for one machine: it runs several processes at a time, which share the cores and the GPUs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

from pipeline.grid.execution import threads_per_run
from pipeline.grid.tasks import Task


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
