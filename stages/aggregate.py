"""Write tables, figures and report of the grid: `python -m stages.aggregate`."""

from common.arguments import Arguments
from common.code import code_fingerprint
from pipeline.grid.held_out import COLD_CODE
from pipeline.params import load_params
from pipeline.runs import ROOT, watched
from stages import run

CODE = ("pipeline/report", "pipeline/grid", *COLD_CODE)
TEMPLATE = ROOT / "pipeline/report/report.html"


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("--partial", action="store_true", help="leave out cells that are missing, or of other settings or data")
    partial = parser.parse_args().partial
    params = load_params()
    check_unchanged = watched(params, lambda today: [today.grid, code_fingerprint(ROOT, CODE), TEMPLATE.read_bytes()])
    from pipeline.report.write import write_report  # imports matplotlib, which is slow

    summary = write_report(params, partial)[0]
    check_unchanged()
    return summary


if __name__ == "__main__":
    run(main)
