"""Tune one adapter on one dataset and backbone under one loss: `python -m stages.tune office sasrec spectran info_nce`.

Writes the choice to grid/tuned. `python -m stages.grid` does so for all that `grid.tuning` lists, several at a time.
"""

from argparse import ArgumentParser

from common.names import check_name
from models.losses import LOSSES
from pipeline.grid.tuning import MONITOR, Tuning, tune, write_choice
from pipeline.params import load_params
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    for name in ("dataset", "backbone", "adapter", "loss"):
        parser.add_argument(name)
    given = parser.parse_args()
    params = load_params()
    params.check_cell(given.dataset, given.backbone, given.adapter)
    check_name("loss", given.loss, LOSSES)
    tuning = Tuning(params, given.dataset, given.backbone, given.adapter, given.loss)
    tune(tuning)
    return f"{tuning.file}: best mean validation {MONITOR} {write_choice(tuning):.4f} of {tuning.n_trials} trials"


if __name__ == "__main__":
    run(main)
