"""Write tables, figures and report of the grid: `python -m stages.aggregate`."""

from common.arguments import Arguments
from pipeline.params import load_params
from stages import run


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("--partial", action="store_true", help="leave out cells that are missing, or of other settings or data")
    partial = parser.parse_args().partial
    params = load_params()
    from pipeline.report.write import write_report  # imports matplotlib, which is slow

    return write_report(params, partial)[0]


if __name__ == "__main__":
    run(main)
