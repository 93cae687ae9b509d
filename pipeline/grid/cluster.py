"""A cluster as the grid's engine: Ray places the tasks, each node gets what they read once, results come back to scratch.

`RAY_ADDRESS` names the cluster; without it, Ray starts one of this machine's own for as long as the grid takes.
"""

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import UserError
from pipeline.artifacts import atomic_directory, scratch
from pipeline.grid import node
from pipeline.grid.node import Outcome, Parcel
from pipeline.grid.parcels import checksum, pack, place_of
from pipeline.grid.tasks import Task
from pipeline.params import PARAMS_FILE, Resources
from pipeline.runs import ROOT

CODE = ("common", "models", "pipeline", "stages")
PATIENCE = 60  # seconds without a node that fits, until the user is told what is waited for


class Cluster:
    """Ray's nodes: as many tasks at a time as their cores, memory and GPUs hold.

    `received` counts the bytes that came to each node, by node and place.
    """

    def __init__(self, resources: Resources) -> None:
        if find_spec("ray") is None:
            raise UserError("--engine ray needs Python package 'ray', which is missing here; `pip install '.[ray]'`")
        # Ray's own default is to try a task that a node has no memory for again and again. It reads this when it is imported.
        os.environ.setdefault("RAY_task_oom_retries", str(resources.retries))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray: Any = import_module("ray")
        self.resources = resources
        self.received: Counter[tuple[str, Path]] = Counter()
        self._parcels: dict[tuple[Path, str], Parcel] = {}
        self._project: list[Parcel] = []

    @property
    def jobs(self) -> int:
        """How many tasks the nodes of this moment hold."""
        return sum(self._holds(has) for has in self._nodes())

    @property
    def threads(self) -> int:
        return self.resources.cores

    @contextmanager
    def submitting(self) -> Iterator[Callable[[Task], Future[bool]]]:
        """Yield a function that submits a task, whose future says whether it succeeded.

        Whoever leaves early, by Ctrl-C say, stops the tasks on all nodes.
        """
        self._connect()
        options = {
            "num_cpus": self.resources.cores,
            "num_gpus": self.resources.gpus,
            "memory": int(self.resources.memory * 2**30),
            "max_retries": self.resources.retries,
        }
        execute = self.ray.remote(**options)(node.execute)
        settings = {"OMP_NUM_THREADS": str(self.resources.cores)}
        if not self.resources.gpus:
            settings["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves them all in sight, for every task to take the first
        base = None if _address() else scratch()
        running: dict[Any, tuple[Task, Future[bool]]] = {}
        stop = threading.Event()

        def submit(task: Task) -> Future[bool]:
            parcels = [*self._project, *(self._parcel(path, place_of(path)) for path in task.inputs)]
            reference = execute.options(name=task.name).remote(task.command, parcels, place_of(task.result), settings, base)
            future: Future[bool] = Future()
            running[reference] = (task, future)
            return future

        collector = threading.Thread(target=self._collect, args=(running, stop))
        collector.start()
        try:
            yield submit
        finally:
            stop.set()
            collector.join()
            for reference in running:
                self.ray.cancel(reference, force=True)

    def _connect(self) -> None:
        """Join the cluster, or start one. Raises UserError where that fails, or no node is large enough for a task."""
        if self._project:
            return
        address = _address()
        started = {} if address else {"include_dashboard": False}
        try:
            if address not in ("", "auto"):
                _knock(address)
            with _hushed():
                self.ray.init(address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **started)
        except (OSError, RuntimeError, ValueError) as error:
            if not address:
                raise UserError(f"Ray does not start on this machine: {' '.join(str(error).split())}") from None
            raise UserError(
                f"no cluster that can be joined at RAY_ADDRESS {address}: {' '.join(str(error).split())}; "
                "`ray start --head` starts one (if it asks for a token, so does joining it: RAY_AUTH_MODE=token), without "
                "RAY_ADDRESS this machine is the cluster"
            ) from None
        if not self.jobs:
            largest = "; ".join(sorted({_shown(has) for has in self._nodes()}))
            raise UserError(
                f"a task takes {_shown(self._takes)}, and no node of the cluster has as much ({largest}); "
                "lower `resources:` in params.yaml, or add a node"
            )
        # Nodes have no `pipeline.grid.node` to import.
        self.ray.cloudpickle.register_pickle_by_value(node)
        self._project = [
            *(self._parcel(ROOT / name, Path(name)) for name in CODE),
            self._parcel(PARAMS_FILE, PARAMS_FILE),
        ]

    def _collect(self, running: dict[Any, tuple[Task, Future[bool]]], stop: threading.Event) -> None:
        """Take results in as they come, until told to stop."""
        fits = time.monotonic()
        while not stop.is_set():
            try:
                waiting = list(running)
                done = self.ray.wait(waiting, timeout=0.5)[0] if waiting else []
                if not waiting:
                    stop.wait(0.1)
                if done or self.jobs:
                    fits = time.monotonic()
                elif time.monotonic() - fits > PATIENCE:
                    print(f"no node with {_shown(self._takes)} is left; waiting for one to join, Ctrl-C stops", flush=True)
                    fits = time.monotonic()
            except Exception as error:  # the cluster is gone: whoever waits for a task has to know
                for _, future in list(running.values()):
                    future.set_exception(error)
                running.clear()
                return
            for reference in done:
                task, future = running.pop(reference)
                try:
                    future.set_result(self._take(task, reference))
                except Exception as error:
                    future.set_exception(error)

    def _take(self, task: Task, reference: Any) -> bool:
        """Put the log and the result of a task that has ended into scratch; return whether it succeeded."""
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # of pipeline.grid.node, say for a full disk: the last line says what
            outcome = Outcome(1, str(error).encode(), None, "", {})
        except self.ray.exceptions.RayError as error:
            text = f"{error}\n{_line(error)} (resources.retries is {self.resources.retries})\n"
            outcome = Outcome(1, text.encode(), None, "", {})
        if outcome.received:
            for place, size in outcome.received.items():
                self.received[outcome.node, place] += size
            sizes = [f"{place} {size:,} bytes" for place, size in outcome.received.items()]
            print(f"node {outcome.node[:8]} received {', '.join(sizes)}", flush=True)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        task.log.write_bytes(outcome.log)
        if outcome.status == 0:
            with atomic_directory(task.result) as directory:
                node.unpack([outcome.result], directory)
        return outcome.status == 0

    def _parcel(self, path: Path, place: Path) -> Parcel:
        """A file or directory in the object store, put there the first time that it is asked for with this content."""
        name = (place, checksum(path, place))
        if name not in self._parcels:
            try:
                self._parcels[name] = pack(path, place, name[1], self.ray.put)
            except self.ray.exceptions.RayError as error:
                raise UserError(
                    f"{path} does not fit into Ray's object store ({_line(error)}); make room on the disk it spills to "
                    "(`ray start --temp-dir`), or give it memory (`--object-store-memory`)"
                ) from None
        return self._parcels[name]

    def _nodes(self) -> list[dict[str, float]]:
        """What each living node has in all, as Ray names it."""
        return [found["Resources"] for found in self.ray.nodes() if found["Alive"]]

    @property
    def _takes(self) -> dict[str, float]:
        """What a task takes of a node, as Ray names it."""
        return {"CPU": self.resources.cores, "memory": self.resources.memory * 2**30, "GPU": self.resources.gpus}

    def _holds(self, has: dict[str, float]) -> int:
        """How many tasks at a time a node holds."""
        return min(int(has.get(name, 0) / amount + 1e-6) for name, amount in self._takes.items() if amount)


def _address() -> str:
    """Where the cluster is; empty for one of this machine's own."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep from the terminal what Ray's own processes write while joining: what went wrong comes as an exception too."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _knock(address: str) -> None:
    """Raise OSError or ValueError where nobody listens: Ray would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError("not of the form host:port")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _shown(resources: dict[str, float]) -> str:
    """`2 cores, 1.0 GiB, 0.5 GPUs`"""
    cores, memory, gpus = (resources.get(name, 0) for name in ("CPU", "memory", "GPU"))
    return f"{cores:g} cores, {memory / 2**30:.1f} GiB" + (f", {gpus:g} GPUs" if gpus else "")
