"""Compare the selected run with the paper's row and the grid's cells, in metrics/selected.md: `python -m stages.compare`."""

from common.arguments import Arguments
from common.code import code_fingerprint
from pipeline.params import load_params
from pipeline.report.selected import write_comparison
from pipeline.runs import CHOICE, ROOT, watched
from stages import run

CODE = ("pipeline/report",)


def main() -> str:
    Arguments(description=__doc__).parse_args()
    params = load_params()
    options = [*CHOICE, "evaluate", "grid"]
    check_unchanged = watched(params, lambda today: [[getattr(today, name) for name in options], code_fingerprint(ROOT, CODE)])
    summary = write_comparison(params)
    check_unchanged()
    return summary


if __name__ == "__main__":
    run(main)
