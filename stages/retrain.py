"""Train the selected run on a longer log, from the weights of an earlier one: `python -m stages.retrain`.

The longer log is a dataset of its own, so that the earlier items and their spectrum stay. Adapter, backbone, dim, encoder and
their options must be those of the checkpoint. Writes data/checkpoints/<dataset>-retrained.
"""

from pathlib import Path

from common.arguments import Arguments
from common.vector_math import select_kernels
from pipeline.params import load_params
from pipeline.runs import CHECKPOINT
from stages import check_checkpoint, run


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, metavar="DIR", help=f"the earlier run ({CHECKPOINT})")
    given = parser.parse_args()
    check_checkpoint(given.checkpoint)
    params = load_params()

    from pipeline.device import select_device
    from pipeline.serving.retrain import checkpoint_of, retrain

    select_kernels()
    found = retrain(params, given.checkpoint, select_device())
    print(f"retrain: {found.kept:,} items keep their rows; new: {found.new:,}; gone: {found.dropped:,}", flush=True)
    name, folder = f"NDCG@{max(params.evaluate.cutoffs)}", checkpoint_of(params.dataset)
    return (
        f"{found.run.name} in {folder}: test {name} {found.after[name]:.4f}, {found.before[name]:.4f} before, "
        f"best epoch {found.training['best_epoch']} of {found.training['epochs']}, {found.seconds:.0f} s"
    )


if __name__ == "__main__":
    run(main)
