"""Compare the selected run with the paper's row and the grid's cells, in metrics/selected.md: `python -m stages.compare`."""

from common.arguments import Arguments
from pipeline.params import load_params
from pipeline.report.selected import write_comparison
from stages import run


def main() -> str:
    Arguments(description=__doc__).parse_args()
    return write_comparison(load_params())


if __name__ == "__main__":
    run(main)
