"""Tune one adapter on one dataset and backbone under one loss: `python -m stages.search office sasrec spectran info_nce`.

Writes the choice to grid/tuned. `python -m stages.grid` does so for all that `grid.search` lists, several at a time.
"""

from argparse import ArgumentParser
from typing import get_args

from models.registry import check_name
from pipeline.params import Loss, load_params
from pipeline.search import MONITOR, Study, search, settle
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    for name in ("dataset", "backbone", "adapter", "loss"):
        parser.add_argument(name)
    given = parser.parse_args()
    params = load_params()
    params.check_cell(given.dataset, given.backbone, given.adapter)
    check_name("loss", given.loss, get_args(Loss))
    study = Study(params, given.dataset, given.backbone, given.adapter, given.loss)
    search(study)
    return f"{study.file}: best validation {MONITOR} {settle(study):.4f} of {study.asked['trials']} trials"


if __name__ == "__main__":
    run(main)
