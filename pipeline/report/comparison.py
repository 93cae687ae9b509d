"""The selected run beside the paper's row and the grid's cells so far."""

from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError
from pipeline.artifacts import atomic_file, read_json, read_signed, sha256
from pipeline.grid.cells import listed_cells, read_cells
from pipeline.params import Params
from pipeline.report.tables import selected_markdown
from pipeline.runs import EVALUATED, EVALUATION, Run
from pipeline.training.metrics import metric_names

SELECTED = Path("metrics/selected.md")
REMAKE = "`python -m stages.evaluate`"


def write_comparison(params: Params) -> str:
    """Write metrics/selected.md, without cells of other settings; return in text its path, the cells left out, and what is in it.

    Raises UserError where the test metrics are missing, damaged, of another run than the selected, or lack one that is asked for.
    """
    figures = evaluated(params)
    names = metric_names(params.evaluate.cutoffs)
    require_metrics(names, figures, f"{EVALUATION} lacks", REMAKE)
    cells = [cell for cell in listed_cells(params.grid) if cell.over == "seeds" and cell.exists]
    same = [cell for cell in cells if not cell.differs(params)]
    chosen = {name: str(getattr(params, name)) for name in ("dataset", "encoder", "backbone", "adapter", "dim", "seed")}
    text = selected_markdown(figures, chosen, read_cells(same) if same else None, names)
    with atomic_file(SELECTED) as partial:
        partial.write_text(text, encoding="utf-8")
    left_out = ", ".join(cell.name for cell in cells if cell not in same)
    return f"{SELECTED}{f'; left out, made with other settings: {left_out}' if left_out else ''}\n\n{text}"


def evaluated(params: Params) -> dict[str, float]:
    """The selected run's test metrics. Raises UserError where they are missing, damaged or of another run than the selected."""
    figures = read_json(EVALUATION, REMAKE)
    about = read_signed(EVALUATED, REMAKE)
    if about[EVALUATION.name] != sha256(EVALUATION):
        raise UserError(f"{EVALUATION} is damaged, its checksum is not that in {EVALUATED}; {REMAKE} makes it again")
    if about["run"] != Run.of(params).choice:
        raise UserError(f"{EVALUATION} is of another run than the one that params.yaml selects; `dvc repro` makes it again")
    return dict(figures)


def require_metrics(names: list[str], found: Iterable[str], where: str, made_by: str) -> None:
    """Raise UserError for a metric that was not asked for when the figures were made."""
    missing = sorted(set(names) - set(found))
    if missing:
        raise UserError(
            f"{where} {', '.join(missing)}, which evaluate.cutoffs in params.yaml asks for; make it again by {made_by}"
        )
