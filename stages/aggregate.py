"""Tables, figures and report of the grid: `python -m stages.aggregate`; with `--selected`, the selected run beside the paper."""

from argparse import ArgumentParser
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import polars as pl

from common.errors import UserError
from pipeline.artifacts import atomic_directory, atomic_file, read_json, read_signed, sha256, verify
from pipeline.grid.cells import Cell, listed_cells, read_cells, set_aside_unlisted
from pipeline.params import Params, load_params
from pipeline.runs import Run, preprocess_command, sequences_directory, spectrum_directory, svd_command
from pipeline.training.metrics import metric_names
from stages import run
from stages.evaluate import EVALUATED, EVALUATION

TABLES = Path("metrics/tables")
FIGURES = Path("metrics/figures")
REPORT = Path("metrics/report.html")
REPORT_MARKDOWN = Path("metrics/report.md")
SELECTED = Path("metrics/selected.md")
REMAKE = "`python -m stages.evaluate`"


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--partial", action="store_true", help="tabulate the cells that are there")
    parser.add_argument("--selected", action="store_true", help="the selected run beside the paper and the grid so far")
    arguments = parser.parse_args()
    params = load_params()
    return selected(params) if arguments.selected else whole_grid(params, arguments.partial)[0]


def selected(params: Params) -> str:
    from pipeline.report.tables import selected_markdown

    figures = evaluated(params)
    names = metric_names(params.evaluate.cutoffs)
    require(names, figures, f"{EVALUATION} lacks", REMAKE)
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


def require(names: list[str], found: Iterable[str], where: str, made_by: str) -> None:
    """Raise UserError for a metric that was not asked for when the figures were made."""
    missing = sorted(set(names) - set(found))
    if missing:
        raise UserError(
            f"{where} {', '.join(missing)}, which evaluate.cutoffs in params.yaml asks for; make it again by {made_by}"
        )


def whole_grid(params: Params, partial: bool) -> tuple[str, list[Cell]]:
    """Make tables, figures and report of the grid, and the selected run's table, which shows the grid's cells beside it.

    Returns the stage's summary and the cells that are in the report.
    """
    from pipeline.report import results, tables
    from pipeline.report.figures import Figures
    from pipeline.report.html import report_html
    from pipeline.report.sections import headline_metric, report_markdown, sections

    grid, names = params.grid, results.table_metrics(params.evaluate.cutoffs)
    cells = listed_cells(grid)
    aside = set_aside_unlisted(cells)
    strangers = {cell: why for cell in cells if cell.exists and (why := cell.differs(params))}
    left_out = ", ".join(f"{cell.name} ({why})" for cell, why in strangers.items())
    missing = [cell for cell in cells if not cell.exists or cell in strangers]
    if strangers and (not partial or len(missing) == len(cells)):
        raise UserError(
            f"{len(strangers)} of {len(cells)} cells were made with other settings than params.yaml's: {left_out}; `dvc repro -k "
            "grid/dvc.yaml` makes them again, `python -m stages.aggregate --partial` leaves them out"
        )
    rows = read_cells([cell for cell in cells if cell not in strangers], partial)
    for dataset, encoder in rows.select("dataset", "encoder").unique(maintain_order=True).rows():
        verify(sequences_directory(dataset), preprocess_command(dataset))
        verify(spectrum_directory(dataset, encoder), svd_command(dataset), [])
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
    absent = [cell.name for cell in missing if not cell.exists]
    said = f"; missing: {', '.join(absent)}" if absent else ""
    said += f"; left out, made with other settings: {left_out}" if strangers else ""
    with suppress(UserError):  # there is none, or it is another run's: nothing to bring up to date
        selected(params)
    return f"{len(rows)} runs in {TABLES}, {FIGURES} and {REPORT}{said}{moved}", [cell for cell in cells if cell not in missing]


if __name__ == "__main__":
    run(main)
