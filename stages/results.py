"""Write the tables, verdicts and pictures of README.md and docs/ anew from docs/results: `python -m stages.results`."""

from common.arguments import Arguments
from stages import run


def main() -> str:
    Arguments(description=__doc__).parse_args()
    from pipeline.report.blocks import write_blocks

    changed = write_blocks()
    return ", ".join(map(str, changed)) if changed else "every table and verdict is up to date"


if __name__ == "__main__":
    run(main)
