"""The whole grid, several runs at a time: `python -m stages.grid --jobs 4`. Stop it and start it again at will.

`--engine ray` sends the runs to the cluster that $RAY_ADDRESS names, or starts one of this machine (docs/cluster.md).
Restores what DVC has, trains what is missing, puts cells and tables in place by `dvc repro grid/dvc.yaml`.
"""

import os
from argparse import ArgumentParser
from pathlib import Path

from common.errors import UserError
from pipeline.grid.cluster import Cluster
from pipeline.grid.tasks import Local, complete, grid_lock
from pipeline.params import choose_grid, load_params
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where: this machine, or a Ray cluster")
    parser.add_argument("--jobs", type=int, help="runs at a time on this machine; they share its cores and its GPUs")
    parser.add_argument("--lists", type=Path, metavar="FILE", help="first make its `grid:` that of params.yaml")
    arguments = parser.parse_args()
    if arguments.jobs is not None and arguments.engine != "local":
        raise UserError("--jobs is for this machine; on a cluster `resources:` in params.yaml decide how many runs fit")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}; choose at least 1")
    with grid_lock():
        if arguments.lists:
            choose_grid(arguments.lists)
        params = load_params()
        engine = Cluster(params.resources) if arguments.engine == "ray" else Local(arguments.jobs or os.cpu_count() or 1)
        return complete(params, engine)


if __name__ == "__main__":
    run(main)
