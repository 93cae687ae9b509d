"""The comparison of the selected run with the paper's row and the grid's cells, in metrics/selected.md."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from common.errors import UserError
from pipeline.artifacts import atomic_file, read_json, read_signed, sha256
from pipeline.grid.cells import KEYS, listed_cells, read_cells
from pipeline.params import Params
from pipeline.report.formats import markdown_lines, plain_lines
from pipeline.report.paper import paper_table
from pipeline.report.tables import seed_count, title
from pipeline.runs import EVALUATED, EVALUATION, Run
from pipeline.training.metrics import metric_names

SELECTED = Path("metrics/selected.md")
EVALUATE = "`python -m stages.evaluate`"


def write_comparison(params: Params) -> str:
    """Write metrics/selected.md; return its path, the cells that were left out, and its content as plain text.

    Cells with settings other than those of params.yaml are left out. Raises UserError if the test metrics are missing, damaged,
    incomplete, or belong to another run than the selected one.
    """
    metrics = selected_metrics(params)
    names = metric_names(params.evaluate.cutoffs)
    require_metrics(names, metrics, str(EVALUATION), EVALUATE)
    cells = [cell for cell in listed_cells(params.grid) if cell.over == "seeds" and cell.exists]
    current = [cell for cell in cells if not cell.differs(params)]
    run = {name: str(getattr(params, name)) for name in ("dataset", "encoder", "backbone", "adapter", "dim", "seed")}
    lines = selected_lines(metrics, run, read_cells(current) if current else None, names)
    with atomic_file(SELECTED) as partial:
        partial.write_text(f"## {heading(run)}\n\n{markdown_lines(lines)}\n", encoding="utf-8")
    left_out = ", ".join(cell.name for cell in cells if cell not in current)
    summary = f"{SELECTED}{f'; left out, built with other settings: {left_out}' if left_out else ''}"
    return f"{summary}\n\n{heading(run)}\n\n{plain_lines(lines)}"


def selected_metrics(params: Params) -> dict[str, float]:
    """Return the selected run's test metrics by name.

    Raises UserError if they are missing, damaged, or belong to another run than the one that params.yaml selects.
    """
    metrics = read_json(EVALUATION, EVALUATE)
    record = read_signed(EVALUATED, EVALUATE)
    if record[EVALUATION.name] != sha256(EVALUATION):
        raise UserError(f"{EVALUATION} is damaged, its checksum differs from the one in {EVALUATED}; {EVALUATE} writes it again")
    if record["run"] != Run.of(params).choice:
        raise UserError(f"{EVALUATION} belongs to another run than the one that params.yaml selects; run `dvc repro`")
    return dict(metrics)


def require_metrics(names: list[str], measured: Iterable[str], owner: str, command: str) -> None:
    """Raise UserError if a metric of `names` was not measured. owner and command: what lacks it and what computes it."""
    missing = sorted(set(names) - set(measured))
    if missing:
        raise UserError(
            f"{owner}: {', '.join(missing)} is missing, which evaluate.cutoffs in params.yaml asks for; {command} computes it"
        )


def selected_lines(
    metrics: dict[str, float], run: dict[str, str], cells: pl.DataFrame | None, names: list[str]
) -> list[list[str]]:
    """Return the header and rows of a table with the selected run and the grid's cells of its dataset and backbone, the highest
    first, and then the paper's row for it.

    metrics: test metrics of the run by name; run: its dataset, encoder, backbone, adapter, dim and seed as text; cells: rows from
    `read_cells`, or None; names: the metrics to show. The last column is the difference of the first metric from the run's.
    """
    names = sorted(names, key=lambda name: (-int(name.partition("@")[2] or 0), -name.startswith("NDCG")))
    rows = [(f"this run ({run['adapter']}, dim {run['dim']}, seed {run['seed']})", metrics)]
    if cells is not None:
        here = cells.filter((pl.col("dataset") == run["dataset"]) & (pl.col("backbone") == run["backbone"]))
        for key, group in here.group_by(["adapter", "dim", "encoder"], maintain_order=True):
            adapter, dim, encoder = map(str, key)
            means = {name: float(group[name].to_numpy().mean()) for name in names if name in group.columns}
            rows.append((f"grid: {adapter}, {encoder}, dim {dim} ({seed_count(group.height)})", means))
    rows.sort(key=lambda row: -row[1].get(names[0], 0))
    paper = paper_table().filter(pl.all_horizontal(pl.col(key) == run[key] for key in KEYS))
    rows += [("paper (LLaMA3-8B, dim 128)", row) for row in paper.iter_rows(named=True)]
    lines = [["", *names, "to this run"]]
    for label, values in rows:
        own, other = metrics[names[0]], values.get(names[0])
        gap = "–" if values is metrics or other is None or not own else f"{100 * (other / own - 1):+.1f} %"
        lines.append([label, *(f"{values[name]:.4f}" if name in values else "–" for name in names), gap])
    return lines


def heading(run: dict[str, str]) -> str:
    return f"{title(run['dataset'])}, {title(run['backbone'])}, encoder {run['encoder']}"
