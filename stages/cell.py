"""Train and evaluate one cell of the grid over its seeds: `python -m stages.cell office sasrec spectran`.

DVC runs it without arguments: the name of its stage says which cell.
"""

import os
from argparse import ArgumentParser
from typing import get_args

from common.errors import UserError
from models.losses import LOSSES
from pipeline.grid.cells import OURS, Cell, Over, cell_of_stage
from pipeline.grid.execution import build_cell
from pipeline.params import load_params
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2] or None
    for name in ("dataset", "backbone", "adapter"):
        parser.add_argument(name, nargs="?" if stage else None)
    over = [name for name in get_args(Over) if name != "tuned"]
    parser.add_argument("--over", choices=over, default="seeds", help="also over SpecTran's variants, or over dims")
    parser.add_argument("--tuned", metavar="LOSS", choices=list(LOSSES), help="with the settings that tuning under LOSS chose")
    given = parser.parse_args()
    params = load_params()
    if given.dataset is None:
        return build_cell(cell_of_stage(stage, params.grid), params)
    params.check_cell(given.dataset, given.backbone, given.adapter)
    if given.over == "variants" and given.adapter != OURS:
        raise UserError(f"adapter {given.adapter} has no variants; {OURS} has")
    kind: Over = "tuned" if given.tuned else given.over
    return build_cell(Cell(given.dataset, given.backbone, given.adapter, kind, given.tuned), params)


if __name__ == "__main__":
    run(main)
