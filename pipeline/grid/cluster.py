"""A Ray cluster as the grid's engine: Ray assigns tasks to nodes, each input is sent to a node once, results return to scratch.

`RAY_ADDRESS` is the address of the cluster. If it is not set, Ray starts a cluster on this machine that ends with the grid.
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

from common.errors import UserError, first_line
from pipeline.artifacts import atomic_directory, scratch
from pipeline.grid import node
from pipeline.grid.node import Outcome, Parcel
from pipeline.grid.parcels import checksum, pack, path_in_task
from pipeline.grid.tasks import Task
from pipeline.params import PARAMS_FILE, Resources
from pipeline.runs import PACKAGES, ROOT

PATIENCE = 60  # seconds without a node that fits before a message says what the grid waits for


class Cluster:
    """An engine that executes as many tasks at a time as the cores, memory and GPUs of Ray's nodes allow.

    received: bytes sent to each node, by node id and path.
    """

    def __init__(self, resources: Resources) -> None:
        if find_spec("ray") is None:
            raise UserError("--engine ray needs Python package 'ray', which is missing here; `pip install '.[ray]'`")
        # By default, Ray retries a task that ran out of memory for ever. It reads this variable at import.
        os.environ.setdefault("RAY_task_oom_retries", str(resources.retries))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray: Any = import_module("ray")
        self.resources = resources
        self.received: Counter[tuple[str, Path]] = Counter()
        self._parcels: dict[tuple[Path, str], Parcel] = {}
        self._project: list[Parcel] = []

    @property
    def jobs(self) -> int:
        """How many tasks the current nodes can run at a time."""
        return sum(self._capacity(resources) for resources in self._nodes())

    @property
    def threads(self) -> int:
        return self.resources.cores

    @contextmanager
    def submitting(self) -> Iterator[Callable[[Task], Future[bool]]]:
        """Yield a function that submits a task; the result of its future is whether the task succeeded.

        Leaving the context early, for example by Ctrl-C, stops the tasks on all nodes.
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
            settings["CUDA_VISIBLE_DEVICES"] = ""  # otherwise every task would see all GPUs and use the first
        base = None if _address() else scratch()
        running: dict[Any, tuple[Task, Future[bool]]] = {}
        stop = threading.Event()

        def submit(task: Task) -> Future[bool]:
            parcels = [*self._project, *(self._parcel(source, path_in_task(source)) for source in task.inputs)]
            reference = execute.options(name=task.name).remote(task.command, parcels, path_in_task(task.result), settings, base)
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
        """Join the cluster, or start one. Raises UserError if that fails, or if no node is large enough for a task."""
        if self._project:
            return
        address = _address()
        started = {} if address else {"include_dashboard": False}
        try:
            if address not in ("", "auto"):
                _check_address(address)
            with _stderr_discarded():
                self.ray.init(address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **started)
        except (OSError, RuntimeError, ValueError) as error:
            if not address:
                raise UserError(f"Ray cannot start on this machine: {' '.join(str(error).split())}") from None
            raise UserError(
                f"cannot join a cluster at RAY_ADDRESS {address}: {' '.join(str(error).split())}; `ray start --head` starts one "
                "(if it asks for a token, set RAY_AUTH_MODE=token here too); unset RAY_ADDRESS to use this machine"
            ) from None
        if not self.jobs:
            nodes = "; ".join(sorted({_as_text(resources) for resources in self._nodes()}))
            raise UserError(
                f"a task takes {_as_text(self._demand)}, and no node of the cluster has as much ({nodes}); "
                "lower `resources:` in params.yaml, or add a node"
            )
        gpus = sum(resources.get("GPU", 0) for resources in self._nodes())
        if gpus and not self.resources.gpus:
            print(f"the cluster has {gpus:g} GPUs, and runs take none: set `resources.gpus` in params.yaml", flush=True)
        # Send the module `pipeline.grid.node` itself, because nodes cannot import it.
        self.ray.cloudpickle.register_pickle_by_value(node)
        self._project = [
            *(self._parcel(ROOT / name, Path(name)) for name in PACKAGES),
            self._parcel(PARAMS_FILE, PARAMS_FILE),
        ]

    def _collect(self, running: dict[Any, tuple[Task, Future[bool]]], stop: threading.Event) -> None:
        """Store the results of tasks as they end, until `stop` is set."""
        last_fit = time.monotonic()  # when a node had room, or a task ended
        while not stop.is_set():
            try:
                waiting = list(running)
                done = self.ray.wait(waiting, timeout=0.5)[0] if waiting else []
                if not waiting:
                    stop.wait(0.1)
                if done or self.jobs:
                    last_fit = time.monotonic()
                elif time.monotonic() - last_fit > PATIENCE:
                    print(f"no node with {_as_text(self._demand)} is left; waiting for one to join, Ctrl-C stops", flush=True)
                    last_fit = time.monotonic()
            except Exception as error:  # every waiting task fails
                gone = f"the cluster is gone ({first_line(error)}); start one and run this command again: finished runs are kept"
                for _, future in list(running.values()):
                    future.set_exception(UserError(gone))
                running.clear()
                return
            for reference in done:
                task, future = running.pop(reference)
                try:
                    future.set_result(self._store(task, reference))
                except Exception as error:
                    future.set_exception(error)

    def _store(self, task: Task, reference: Any) -> bool:
        """Write the log and the result of a task that has ended to scratch; return whether it succeeded."""
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # an error in pipeline.grid.node, e.g. a full disk
            outcome = Outcome(1, str(error).encode(), None, "", {})
        except self.ray.exceptions.RayError as error:
            text = f"{error}\n{first_line(error)} (resources.retries is {self.resources.retries})\n"
            outcome = Outcome(1, text.encode(), None, "", {})
        if outcome.received:
            for path, size in outcome.received.items():
                self.received[outcome.node, path] += size
            sizes = [f"{path} {size:,} bytes" for path, size in outcome.received.items()]
            print(f"node {outcome.node[:8]} received {', '.join(sizes)}", flush=True)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        task.log.write_bytes(outcome.log)
        if outcome.status == 0:
            with atomic_directory(task.result) as directory:
                node.unpack([outcome.result], directory)
        return outcome.status == 0

    def _parcel(self, source: Path, path: Path) -> Parcel:
        """Return the parcel of a file or directory; it is packed into the object store once for the same content.

        path: its path in a task's folder. Raises UserError if it does not fit into the object store.
        """
        key = (path, checksum(source, path))
        if key not in self._parcels:
            try:
                self._parcels[key] = pack(source, path, key[1], self.ray.put)
            except self.ray.exceptions.RayError as error:
                raise UserError(
                    f"{source} does not fit into Ray's object store ({first_line(error)}); free space on the disk it spills to "
                    "(`ray start --temp-dir`), or give it more memory (`--object-store-memory`)"
                ) from None
        return self._parcels[key]

    def _nodes(self) -> list[dict[str, float]]:
        """Return the total resources of each living node, by Ray's names."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    @property
    def _demand(self) -> dict[str, float]:
        """The resources of a task, by Ray's names."""
        return {"CPU": self.resources.cores, "memory": self.resources.memory * 2**30, "GPU": self.resources.gpus}

    def _capacity(self, resources: dict[str, float]) -> int:
        """Return how many tasks at a time a node can run."""
        return min(int(resources.get(name, 0) / amount + 1e-6) for name, amount in self._demand.items() if amount)


def _address() -> str:
    """Return the address of the cluster; "" for a cluster on this machine only."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discard what Ray's processes write to stderr; their errors are raised as exceptions too."""
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _check_address(address: str) -> None:
    """Raise OSError or ValueError if nothing listens at `address`; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError("the form is host:port")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _as_text(resources: dict[str, float]) -> str:
    """Return resources in words: "2 cores, 1.0 GiB, 0.5 GPUs"."""
    cores, memory, gpus = (resources.get(name, 0) for name in ("CPU", "memory", "GPU"))
    return f"{cores:g} cores, {memory / 2**30:.1f} GiB" + (f", {gpus:g} GPUs" if gpus else "")
