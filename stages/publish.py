"""Keep the grid's results in git, so that anyone can recheck them: `python -m stages.publish office` -> docs/results/office.

`--restore` brings them back: the grid's lists to params.yaml and the cells to grid/cells, without weights; then
`python -m stages.aggregate` makes tables, tests, figures and report of them again, and no run of theirs is trained again.
"""

from argparse import ArgumentParser

from common.names import check_form
from pipeline.grid.published import PUBLISHED
from pipeline.params import load_params
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the folder in docs/results")
    parser.add_argument("--restore", action="store_true", help="from there, not to it")
    given = parser.parse_args()
    folder = PUBLISHED / check_form("folder", given.name)
    from pipeline.report.publishing import publish_grid, restore_grid  # imports matplotlib

    return restore_grid(folder) if given.restore else publish_grid(folder, load_params())


if __name__ == "__main__":
    run(main)
