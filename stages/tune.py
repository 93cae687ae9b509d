"""Tune one adapter on one dataset and backbone under one loss: `python -m stages.tune office sasrec spectran info_nce`.

It writes the chosen settings to grid/tuned. `python -m stages.grid` runs all tunings that `grid.tuning` lists, several at a time.
"""

from common.arguments import Arguments
from common.names import check_name
from common.vector_math import select_kernels
from models.losses import LOSSES
from pipeline.grid.tuning import MONITOR, Tuning, tune, write_choice
from pipeline.params import load_params
from stages import add_cell, run


def main() -> str:
    parser = Arguments(description=__doc__)
    add_cell(parser)
    parser.add_argument("loss", help=" or ".join(LOSSES))
    arguments = parser.parse_args()
    params = load_params()
    params.check_cell(arguments.dataset, arguments.backbone, arguments.adapter)
    check_name("loss", arguments.loss, LOSSES)
    select_kernels()
    tuning = Tuning(params, arguments.dataset, arguments.backbone, arguments.adapter, arguments.loss)
    tune(tuning)
    value = write_choice(tuning)
    return f"{tuning.file}: validation {MONITOR} {value:.4f} under seed {tuning.seeds[1]}, after {tuning.n_trials} trials"


if __name__ == "__main__":
    run(main)
