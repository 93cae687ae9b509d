"""Tune one adapter on one dataset and backbone under one loss: `python -m stages.tune office sasrec spectran info_nce`.

Writes the choice to grid/tuned. `python -m stages.grid` does so for all that `grid.search` lists, several at a time.
"""

from argparse import ArgumentParser

from common.names import check_name
from models.losses import LOSSES
from pipeline.grid.tuning import MONITOR, Tuning, search, write_choice
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
    study = Tuning(params, given.dataset, given.backbone, given.adapter, given.loss)
    search(study)
    return f"{study.file}: best validation {MONITOR} {write_choice(study):.4f} of {study.asked['trials']} trials"


if __name__ == "__main__":
    run(main)
