"""Train and evaluate one cell of the grid over its seeds: `python -m stages.cell office sasrec spectran`."""

import os
from argparse import ArgumentParser, Namespace

from common.errors import UserError
from models.losses import LOSSES
from pipeline.evaluation.summary import run_summary
from pipeline.grid.cells import OURS, Cell, Over, listed_cells, write_cell
from pipeline.grid.execution import evaluated, evaluated_together, ready
from pipeline.grid.tasks import NO_TRAINING
from pipeline.grid.tuning import Tuning
from pipeline.params import Params, load_params
from pipeline.runs import Run
from pipeline.training.metrics import metric_names
from stages import run

OVER = ("seeds", "variants", "dims")


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2] or None
    for name in ("dataset", "backbone", "adapter"):
        parser.add_argument(name, nargs="?" if stage else None)
    parser.add_argument("--over", choices=OVER, default="seeds", help="also over SpecTran's variants, or over dims")
    parser.add_argument(
        "--tuned", metavar="LOSS", choices=list(LOSSES), help="with the settings that the tuning under this loss chose"
    )
    parser.add_argument("--prepare", type=int, metavar="SEED", help="train and test this seed into scratch, and no more")
    parser.add_argument("--dim", type=int, help="of --prepare; grid.dim if left out")
    parser.add_argument("--variant", help="of --prepare, SpecTran's")
    given = parser.parse_args()
    params = load_params()
    if given.dataset is None:
        return make(cell_of_stage(stage, params), params)
    params.check_cell(given.dataset, given.backbone, given.adapter)
    if given.over == "variants" and given.adapter != OURS:
        raise UserError(f"adapter {given.adapter} has no variants; {OURS} has")
    over: Over = "tuned" if given.tuned else given.over
    if given.prepare is not None:
        return f"{evaluated(one_run(given, params))}"
    return make(Cell(given.dataset, given.backbone, given.adapter, over, given.tuned), params)


def cell_of_stage(stage: str | None, params: Params) -> Cell:
    """The cell that a stage of grid/dvc.yaml makes. Raises UserError for a stage that the lists of params.yaml do not name."""
    for cell in listed_cells(params.grid):
        if cell.stage.rpartition(":")[2] == stage:
            return cell
    raise UserError(f"the lists of `grid:` in params.yaml name no cell for DVC's stage {stage!r}")


def one_run(given: Namespace, params: Params) -> Run:
    names = {"dataset": given.dataset, "backbone": given.backbone, "adapter": given.adapter}
    if given.tuned:
        tuning = Tuning(params, **names, loss=given.tuned)
        return tuning.run(tuning.chosen, given.prepare)
    names |= {"dim": given.dim or params.grid.dim, "seed": given.prepare}
    return Run.of(params, **names, changes={"adapter": {"variant": given.variant}} if given.variant else {})


def make(cell: Cell, params: Params) -> str:
    """Train what is not in scratch and put the cell in place; return its means."""
    runs = cell.runs(params)
    missing = [run for run in runs if not ready(run)]
    if missing and os.environ.get(NO_TRAINING):
        raise UserError(f"{NO_TRAINING} is set and {len(missing)} of {len(runs)} runs are not trained")
    run_directories = evaluated_together(runs)
    rows = [run_summary(one, made, params.evaluate) for one, made in zip(runs, run_directories, strict=True)]
    write_cell(cell, rows, run_directories)
    names = metric_names(params.evaluate.cutoffs)
    shown = ", ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.4f}" for name in names)
    count = f"{len(rows)} seeds" if cell.over in ("seeds", "tuned") else f"{len(rows)} runs over {cell.over} and seeds"
    return f"{cell.name}: mean of {count}: {shown}"


if __name__ == "__main__":
    run(main)
