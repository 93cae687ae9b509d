"""Train the whole grid, several runs at a time: `python -m stages.grid --jobs 4`. It can be stopped and started again at any
time.

It restores cells from DVC's cache, trains the missing runs, and builds cells and tables by `dvc repro grid/dvc.yaml`. With
`--engine ray`, the runs are executed on the cluster at $RAY_ADDRESS, or on a cluster that Ray starts here (docs/cluster.md).
"""

import os
from pathlib import Path

from common.arguments import Arguments
from common.errors import UserError
from pipeline.grid.cluster import Cluster
from pipeline.grid.complete import complete, grid_lock
from pipeline.grid.lists import choose_grid
from pipeline.grid.local import Local
from pipeline.params import load_params
from stages import run


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where runs are executed")
    parser.add_argument("--jobs", type=int, help="runs at a time on this machine; default: its number of cores")
    parser.add_argument("--lists", type=Path, metavar="FILE", help="first replace `grid:` in params.yaml by that of FILE")
    arguments = parser.parse_args()
    if arguments.jobs is not None and arguments.engine != "local":
        raise UserError("--jobs is for this machine; on a cluster, `resources:` in params.yaml decides how many runs fit")
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
