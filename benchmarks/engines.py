"""The engines of the grid: local processes compared with Ray, and the bytes that are sent to the nodes of a cluster.

`python -m benchmarks.engines grid [turns]` trains the grid of params.yaml with 2 local processes, 1 local process, and Ray with 2
nodes and with 1 node of one core each. It prints seconds, runs per hour, the overhead per run beyond its epochs, and whether
weights and ranks are the same. Its inputs come from `make demo`.
`python -m benchmarks.engines transfer 1000000 384` generates a spectrum of that many items and columns, which 6 tasks on 2 nodes
read. It prints the bytes that each node received, and the bytes that passed through this machine's network interface.

The nodes are processes on this machine, each with one core and its own scratch. Temporary files are in the folder of `tempfile`.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster as Processes

from pipeline.artifacts import scratch, sha256
from pipeline.grid import cluster
from pipeline.grid.cells import listed_cells
from pipeline.grid.cluster import Cluster
from pipeline.grid.complete import run_all
from pipeline.grid.local import Local
from pipeline.grid.tasks import Engine, Task, training_task
from pipeline.params import Resources, load_params

TASK_CODE = """
import os, sys
from pathlib import Path
result = Path(os.environ["SPECTRAN_SCRATCH"], "runs", sys.argv[1])
result.mkdir(parents=True)
(result / "size.txt").write_text(str(Path("data/spectrum/large/U.npy").stat().st_size))
"""


@contextmanager
def nodes(count: int, folder: Path, store: int = 500_000_000) -> Iterator[None]:
    """Start a cluster of a head without cores and `count` nodes of one core each, and set RAY_ADDRESS to it."""
    started = Processes(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": store}
    )
    for i in range(count):
        started.add_node(num_cpus=1, memory=2**32, env_vars={"SPECTRAN_SCRATCH": str(folder / f"node{i}")})
    os.environ["RAY_ADDRESS"] = started.address
    try:
        yield
    finally:
        ray.shutdown()
        started.shutdown()
        del os.environ["RAY_ADDRESS"]


def whole_grid(engine: Engine, folder: Path) -> tuple[float, float, dict[str, str]]:
    """Train every run of the grid in `folder`; return the seconds, those of the epochs, and checksums of weights and ranks."""
    params = load_params()
    os.environ["SPECTRAN_SCRATCH"] = str(folder)
    tasks = [training_task(run, cell, params) for cell in listed_cells(params.grid) for run in cell.runs(params)]
    start = time.perf_counter()
    assert run_all(tasks, engine) == []
    seconds = time.perf_counter() - start
    checksums = {
        f"{task.name} {file}": sha256(task.result / file) for task in tasks for file in ("model.safetensors", "ranks.parquet")
    }
    epochs = sum(json.loads((task.result / "run.json").read_text())["seconds"] for task in tasks)
    return seconds, epochs, checksums


def grid(turns: int) -> None:
    """Print the times of all engines, `turns` times."""
    resources = load_params().resources
    with tempfile.TemporaryDirectory() as name:
        for turn in range(turns):
            folder = Path(name) / str(turn)
            local, _, expected = whole_grid(Local(2), folder / "local")
            parts = [f"2 local processes {local:.1f} s"]
            one = Local(1)
            one.threads = 1
            seconds, epochs, checksums = whole_grid(one, folder / "one")
            overhead = (seconds - epochs) / (len(checksums) / 2)  # two files per run
            parts.append(f"1 local process {seconds:.1f} s ({seconds / local:.2f} of 2; overhead {overhead:.1f} s per run)")
            for count in (2, 1):
                with nodes(count, folder / f"of{count}"):
                    seconds, _, checksums = whole_grid(Cluster(resources), folder / f"ray{count}")
                same = "same" if checksums == expected else "OTHER"
                rate = len(checksums) / 2 / seconds * 3600
                parts.append(
                    f"Ray, {count} nodes {seconds:.1f} s ({seconds / local:.2f} of local, {rate:.0f} runs/h, {same} numbers)"
                )
            print("; ".join(parts), flush=True)


def loopback_bytes() -> int:
    """Return the bytes that processes of this machine have sent to each other through the network."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def transfer(n_items: int, width: int) -> None:
    """Print the bytes that two nodes receive for six tasks which read the same spectrum."""
    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
        for folder in (*cluster.CODE, "data/spectrum/large"):
            (project / folder).mkdir(parents=True)
        (project / "stages/look.py").write_text(TASK_CODE)
        (project / "params.yaml").write_text("seed: 0\n")
        os.chdir(project)
        cluster.ROOT = project
        U = np.lib.format.open_memmap("data/spectrum/large/U.npy", mode="w+", dtype=np.float32, shape=(n_items, width))
        rng = np.random.default_rng(0)
        for start in range(0, n_items, 50_000):
            U[start : start + 50_000] = rng.random((min(50_000, n_items - start), width), np.float32)
        U.flush()
        tasks = [
            Task(f"look{i}", ("stages.look", f"look{i}"), (Path("data/spectrum/large"),), scratch() / "runs" / f"look{i}")
            for i in range(6)
        ]
        with nodes(2, Path(name)):
            engine = Cluster(Resources())
            before, start = loopback_bytes(), time.perf_counter()
            assert run_all(tasks, engine) == []
            seconds = time.perf_counter() - start
            between = loopback_bytes() - before
        print(f"spectrum of {Path('data/spectrum/large/U.npy').stat().st_size:,} bytes, 6 tasks on 2 nodes, {seconds:.1f} s")
        for (node, path), size in engine.received.items():
            print(f"node {node[:8]} received {path}: {size:,} bytes")
        print(f"through the network of this machine: {between:,} bytes")


if __name__ == "__main__":
    if sys.argv[1] == "grid":
        grid(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    else:
        transfer(int(sys.argv[2]), int(sys.argv[3]))
