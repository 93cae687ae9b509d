"""Train and test one run of the grid into scratch: `python -m stages.prepare office sasrec spectran --seed 0 --dim 128`.

`python -m stages.grid` starts one for each run that is missing; a cell is then put together without training.
"""

from argparse import ArgumentParser

from models.losses import LOSSES
from pipeline.grid.execution import evaluated
from pipeline.grid.tuning import Tuning
from pipeline.params import load_params
from pipeline.runs import Run
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    for name in ("dataset", "backbone", "adapter"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--dim", type=int, help="grid.dim if left out")
    parser.add_argument("--variant", help="one of SpecTran's")
    parser.add_argument("--tuned", metavar="LOSS", choices=list(LOSSES), help="with the settings that tuning under LOSS chose")
    given = parser.parse_args()
    params = load_params()
    params.check_cell(given.dataset, given.backbone, given.adapter)
    names = {"dataset": given.dataset, "backbone": given.backbone, "adapter": given.adapter}
    if given.tuned:
        tuning = Tuning(params, **names, loss=given.tuned)
        chosen = tuning.run(tuning.chosen, given.seed)
    else:
        changes = {"adapter": {"variant": given.variant}} if given.variant else {}
        chosen = Run.of(params, **names, dim=given.dim or params.grid.dim, seed=given.seed, changes=changes)
    return f"{chosen.name}: {evaluated(chosen)}"


if __name__ == "__main__":
    run(main)
