"""Tables, figures and report of the grid: `python -m stages.aggregate`; with `--selected`, the selected run beside the paper."""

from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from common.errors import UserError
from pipeline.artifacts import atomic_directory, atomic_file, read_json
from pipeline.grid.cells import listed_cells, read_cells, set_aside_unlisted
from pipeline.params import Params, load_params
from pipeline.training.metrics import metric_names
from stages import run

TABLES = Path("metrics/tables")
FIGURES = Path("metrics/figures")
REPORT = Path("metrics/report.html")
REPORT_MARKDOWN = Path("metrics/report.md")
EVALUATION = Path("metrics/evaluation.json")
SELECTED = Path("metrics/selected.md")


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--partial", action="store_true", help="tabulate the cells that are there")
    parser.add_argument("--selected", action="store_true", help="the selected run beside the paper and the grid so far")
    arguments = parser.parse_args()
    params = load_params()
    return selected(params) if arguments.selected else whole_grid(params, arguments.partial)


def selected(params: Params) -> str:
    from pipeline.report.tables import selected_markdown

    figures = read_json(EVALUATION, "`python -m stages.evaluate`")
    names = metric_names(params.evaluate.cutoffs)
    require(names, figures, f"{EVALUATION} lacks", "`python -m stages.evaluate`")
    cells = [cell for cell in listed_cells(params.grid) if cell.over == "seeds" and cell.exists]
    chosen = {name: str(getattr(params, name)) for name in ("dataset", "encoder", "backbone", "adapter", "dim", "seed")}
    text = selected_markdown(figures, chosen, read_cells(cells) if cells else None, names)
    with atomic_file(SELECTED) as partial:
        partial.write_text(text, encoding="utf-8")
    return f"{SELECTED}\n\n{text}"


def require(names: list[str], found: Iterable[str], where: str, made_by: str) -> None:
    """Raise UserError for a metric that was not asked for when the figures were made."""
    missing = sorted(set(names) - set(found))
    if missing:
        raise UserError(
            f"{where} {', '.join(missing)}, which evaluate.cutoffs in params.yaml asks for; make it again by {made_by}"
        )


def whole_grid(params: Params, partial: bool) -> str:
    from pipeline.report import results, tables
    from pipeline.report.figures import Figures
    from pipeline.report.html import report_html
    from pipeline.report.sections import headline_metric, report_markdown, sections

    grid, names = params.grid, results.table_metrics(params.evaluate.cutoffs)
    cells = listed_cells(grid)
    aside = set_aside_unlisted(cells)
    rows = read_cells(cells, partial)
    missing = [cell for cell in cells if not cell.exists]
    require(names, rows.columns, "the cells lack", "`dvc repro grid/dvc.yaml`")
    plain = rows.filter(pl.col("over") == "seeds")
    if not plain.height:
        raise UserError("all cells of Table 2 are missing; `dvc repro -k grid/dvc.yaml` trains them")
    cutoff = max(params.evaluate.cutoffs)
    result_sets = results.result_sets(rows, names, cutoff, params.train)
    summary = result_sets[0].summary
    grouped = results.grouped(plain, cutoff)
    cost = results.cost(plain)
    made = tables.all_tables(params, rows, missing, result_sets, cost)
    with atomic_directory(TABLES) as directory:
        for table in made.values():
            table.write(directory)
        grouped.write_csv(directory / "groups.csv")
        kept = rows.drop("over", "run_directory", "training_seconds", "seconds_per_epoch", "inference_seconds")
        kept.write_csv(directory / "runs.csv")
    with atomic_directory(FIGURES) as directory:
        metric = headline_metric(summary)
        figures = Figures(directory, rows["adapter"].unique(maintain_order=True).to_list())
        figures.comparison(summary, metric)
        figures.learning_curves(plain)
        figures.spectra(plain)
        figures.cost(cost, summary, metric)
        figures.groups(grouped, "popularity", "popularity of the test item", metric)
        figures.groups(grouped, "history", "training items of the user", metric)
        if "table4" in made:
            figures.dimensions(made["table4"].data, metric)
    drawn = {file.stem for file in FIGURES.glob("*.svg")}
    told = sections(params, rows, result_sets, made, drawn, missing)
    for file, text in ((REPORT, report_html(told, FIGURES)), (REPORT_MARKDOWN, report_markdown(told))):
        with atomic_file(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    moved = f"; set aside, no longer listed: {', '.join(aside)}" if aside else ""
    absent = f"; missing: {', '.join(cell.name for cell in missing)}" if missing else ""
    return f"{len(rows)} runs in {TABLES}, {FIGURES} and {REPORT}{absent}{moved}"


if __name__ == "__main__":
    run(main)
