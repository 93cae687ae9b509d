"""Everything that the grid's cells become: tables, figures, and the report as HTML and Markdown."""

from contextlib import suppress
from pathlib import Path

import polars as pl

from common.errors import UserError
from pipeline.artifacts import atomic_directory, atomic_file, verify
from pipeline.grid.cells import Cell, listed_cells, read_cells, set_aside_unlisted
from pipeline.params import Params
from pipeline.report import results, tables
from pipeline.report.comparison import require_metrics, write_comparison
from pipeline.report.decision import write_decision
from pipeline.report.dropped import dropped_section
from pipeline.report.figures import Figures
from pipeline.report.html import report_html
from pipeline.report.sections import headline_metric, report_markdown, sections
from pipeline.report.trivial import sentences, trivial_rows, with_trivial
from pipeline.runs import preprocess_command, sequences_directory, spectrum_directory, svd_command

TABLES = Path("metrics/tables")
FIGURES = Path("metrics/figures")
REPORT = Path("metrics/report.html")
REPORT_MARKDOWN = Path("metrics/report.md")


def write_report(params: Params, partial: bool = False) -> tuple[str, list[Cell]]:
    """Write metrics/tables, metrics/figures, both reports and metrics/decision.md from the cells, and the selected run's table.

    Returns what was done in one line, and the cells that are in the report. Cells that the lists of params.yaml no longer name
    are moved into scratch. Raises UserError where cells are missing or were made with other settings, unless `partial`; where
    all of them or all of Table 2 are; where data is damaged; and where a metric was not measured.
    """
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
    require_metrics(names, rows.columns, "the cells lack", "`dvc repro grid/dvc.yaml`")
    plain = rows.filter(pl.col("over") == "seeds")
    if not plain.height:
        raise UserError("all cells of Table 2 are missing; `dvc repro -k grid/dvc.yaml` trains them")
    cutoff = max(params.evaluate.cutoffs)
    result_sets = results.result_sets(rows, names, cutoff, params.train)
    summary = result_sets[0].summary
    grouped = results.grouped(plain, cutoff)
    cost = results.cost(plain)
    made = tables.all_tables(params, rows, missing, result_sets, cost)
    headline = f"NDCG@{cutoff}"
    trivial, without = trivial_rows(params, plain["dataset"].unique(maintain_order=True).to_list())
    for part in result_sets:
        name = part.named("table2")
        made[name] = with_trivial(made[name], part.summary, trivial, headline)
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
    told[0].parts.insert(1, sentences(summary, trivial, without, headline))  # below the verdict
    told[-2:-2] = dropped_section(plain["dataset"].unique(maintain_order=True).to_list())
    write_decision(params, plain, result_sets[0].comparisons, result_sets[0].unusable, trivial)
    for file, text in ((REPORT, report_html(told, FIGURES)), (REPORT_MARKDOWN, report_markdown(told))):
        with atomic_file(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    moved = f"; set aside, no longer listed: {', '.join(aside)}" if aside else ""
    absent = [cell.name for cell in missing if not cell.exists]
    said = f"; missing: {', '.join(absent)}" if absent else ""
    said += f"; left out, made with other settings: {left_out}" if strangers else ""
    with suppress(UserError):  # there is none, or it is another run's: nothing to bring up to date
        write_comparison(params)
    return f"{len(rows)} runs in {TABLES}, {FIGURES} and {REPORT}{said}{moved}", [cell for cell in cells if cell not in missing]
