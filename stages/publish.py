"""Publish the grid's results in docs/results/<name>, so that anyone can check them: `python -m stages.publish office`.

`--restore` copies published results back: the grid's lists to params.yaml, and the cells, without weights, to grid/cells. Then
`python -m stages.aggregate` builds tables, significance tests, figures and report from them, without training.
"""

from common.arguments import Arguments
from common.names import check_form
from pipeline.grid.published import PUBLISHED
from pipeline.params import load_params
from stages import run


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("name", help="name of the folder in docs/results")
    parser.add_argument("--restore", action="store_true", help="copy published results back instead of publishing")
    arguments = parser.parse_args()
    folder = PUBLISHED / check_form("folder", arguments.name)
    from pipeline.report.publishing import publish_grid, restore_grid  # imports matplotlib, which is slow

    return restore_grid(folder) if arguments.restore else publish_grid(folder, load_params())


if __name__ == "__main__":
    run(main)
