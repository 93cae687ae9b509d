"""Train and test one run of the grid in scratch: `python -m stages.prepare office sasrec spectran --seed 0 --dim 128`.

`python -m stages.grid` runs it for each missing run; cells are then built without training.
"""

from common.arguments import Arguments
from common.errors import UserError
from models.losses import LOSSES
from pipeline.grid.execution import evaluated
from pipeline.grid.tuning import Tuning
from pipeline.params import LARGEST_DIM, load_params
from pipeline.runs import Run
from stages import add_cell, run


def main() -> str:
    parser = Arguments(description=__doc__)
    add_cell(parser)
    parser.add_argument("--seed", type=int, required=True, help="of this one run")
    parser.add_argument("--dim", type=int, help="default: grid.dim")
    parser.add_argument("--variant", help="a variant of SpecTran")
    parser.add_argument("--tuned", metavar="LOSS", choices=list(LOSSES), help="use the settings that tuning under LOSS chose")
    arguments = parser.parse_args()
    if arguments.dim is not None and not 1 <= arguments.dim <= LARGEST_DIM:
        raise UserError(f"--dim is {arguments.dim}; choose 1 to {LARGEST_DIM}")
    if arguments.tuned and (arguments.dim is not None or arguments.variant):
        raise UserError("--tuned takes dim and variant from the tuning; leave out --dim and --variant")
    params = load_params()
    params.check_cell(arguments.dataset, arguments.backbone, arguments.adapter)
    names = {"dataset": arguments.dataset, "backbone": arguments.backbone, "adapter": arguments.adapter}
    if arguments.tuned:
        tuning = Tuning(params, **names, loss=arguments.tuned)
        selected = tuning.run(tuning.chosen, arguments.seed)
    else:
        changes = {"adapter": {"variant": arguments.variant}} if arguments.variant else {}
        dim = params.grid.dim if arguments.dim is None else arguments.dim
        selected = Run.of(params, **names, dim=dim, seed=arguments.seed, changes=changes)
    return f"{selected.name}: {evaluated(selected)}"


if __name__ == "__main__":
    run(main)
