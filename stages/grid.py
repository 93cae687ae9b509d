"""The whole grid, several runs at a time: `python -m stages.grid --jobs 4`. Stop it and start it again at will.

Restores what DVC has, trains what is missing, puts cells and tables in place by `dvc repro grid/dvc.yaml`.
"""

import os
from argparse import ArgumentParser
from pathlib import Path

from models.errors import UserError
from pipeline.grid import Local, Task, assemble, run_all, unfinished
from pipeline.params import choose_grid, load_params
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; they share the cores and the GPUs")
    parser.add_argument("--lists", type=Path, metavar="FILE", help="first make its `grid:` that of params.yaml")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}; choose at least 1")
    if arguments.lists:
        choose_grid(arguments.lists)
    params = load_params()
    print("grid: restoring what DVC has", flush=True)
    if assemble(quiet=True):
        return "everything was in place"
    engine = Local(arguments.jobs)
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


if __name__ == "__main__":
    run(main)
