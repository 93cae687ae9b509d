"""Rank the test items of a dataset by popularity, ItemKNN and nearest text: `python -m stages.baselines office`."""

from common.arguments import Arguments
from common.code import code_fingerprint
from common.names import check_name
from pipeline.params import load_params
from pipeline.runs import ROOT, watched
from stages import add_dataset, run

CODE = ("pipeline/grid/baselines.py", "pipeline/grid/baseline_cells.py", "pipeline/evaluation", "pipeline/training")


def main() -> str:
    parser = Arguments(description=__doc__)
    add_dataset(parser)
    dataset = parser.parse_args().dataset
    params = load_params()
    check_name("dataset", dataset, params.sources)
    check_unchanged = watched(
        params, lambda today: [today.encoder, today.train.max_history, today.evaluate, code_fingerprint(ROOT, CODE)]
    )
    from pipeline.grid.baseline_cells import write_baselines  # imports torch

    return write_baselines(dataset, params.encoder, params.train.max_history, params.evaluate, check_unchanged)


if __name__ == "__main__":
    run(main)
