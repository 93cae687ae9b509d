"""Train and evaluate one cell of the grid over its seeds: `python -m stages.cell office sasrec spectran`.

DVC runs it without arguments; the cell follows from the name of the DVC stage.
"""

import os
from typing import Any, get_args

from common.arguments import Arguments
from common.errors import UserError
from models.losses import LOSSES
from pipeline.grid.cells import SPECTRAN, Cell, Over, cell_of_stage
from pipeline.grid.execution import build_cell
from pipeline.params import Params, load_params
from pipeline.runs import evaluation_code, watched
from stages import add_cell, run


def main() -> str:
    parser = Arguments(description=__doc__)
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2] or None
    add_cell(parser, optional=stage is not None)
    over = [name for name in get_args(Over) if name != "tuned"]
    runs = parser.add_mutually_exclusive_group()
    runs.add_argument("--over", choices=over, default="seeds", help="vary only seeds, or also SpecTran's variants or dims")
    runs.add_argument("--tuned", metavar="LOSS", choices=list(LOSSES), help="use the settings that tuning under LOSS chose")
    arguments = parser.parse_args()
    params = load_params()
    if arguments.dataset is None:
        return build(cell_of_stage(stage, params.grid), params)
    params.check_cell(arguments.dataset, arguments.backbone, arguments.adapter)
    if arguments.over == "variants" and arguments.adapter != SPECTRAN:
        raise UserError(f"adapter {arguments.adapter} has no variants; use {SPECTRAN}")
    kind: Over = "tuned" if arguments.tuned else arguments.over
    return build(Cell(arguments.dataset, arguments.backbone, arguments.adapter, kind, arguments.tuned), params)


def build(cell: Cell, params: Params) -> str:
    def read(today: Params) -> list[Any]:
        return [[run.fingerprint for run in cell.runs(today)], evaluation_code(), today.evaluate]

    return build_cell(cell, params, watched(params, read))


if __name__ == "__main__":
    run(main)
