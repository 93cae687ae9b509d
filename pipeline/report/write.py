"""The grid's outputs: tables, figures, and the report as HTML and Markdown."""

import textwrap
from contextlib import suppress
from pathlib import Path

import polars as pl

from common.errors import UserError
from pipeline.artifacts import atomic_directory, atomic_file, verify
from pipeline.grid.cells import Cell, listed_cells, move_unlisted_cells, read_cells
from pipeline.params import Params
from pipeline.report import results, table_data, users
from pipeline.report.comparison import require_metrics, write_comparison
from pipeline.report.conclusions import verdicts
from pipeline.report.decision import write_decision
from pipeline.report.formats import Table
from pipeline.report.gains import by_group, over_base
from pipeline.report.held_out import held_out_table
from pipeline.report.html import report_html
from pipeline.report.illustrations import Measured, illustrate
from pipeline.report.leaderboard import leaderboard, plain
from pipeline.report.sections import report_markdown, sections
from pipeline.report.tables import all_tables
from pipeline.report.trivial import beyond_table, sentences, trivial_rows, with_trivial
from pipeline.runs import preprocess_command, sequences_directory, spectrum_directory, svd_command

TABLES = Path("metrics/tables")
FIGURES = Path("metrics/figures")
LEADERBOARD = "leaderboard.txt"
REPORT = Path("metrics/report.html")
WIDTH = 98  # columns of the text for a terminal
REPORT_MARKDOWN = Path("metrics/report.md")


def write_report(params: Params, partial: bool = False) -> tuple[str, list[Cell]]:
    """Write metrics/tables, metrics/figures, both reports, metrics/decision.md and metrics/selected.md from the cells.

    Returns a summary, which ends with the verdict and the leaderboard as plain text, and the cells that are in the report. Cells
    that the lists of params.yaml do not name are moved into scratch. With `partial`, cells that are missing or were built with
    other settings are left out.

    Raises UserError if cells are missing or were built with other settings, unless `partial`; if no cell of Table 2 is left; if
    data is damaged; and if a metric was not measured.
    """
    grid, names = params.grid, results.table_metrics(params.evaluate.cutoffs)
    cells = listed_cells(grid)
    moved = move_unlisted_cells(cells)
    outdated = {cell: difference for cell in cells if cell.exists and (difference := cell.differs(params))}
    left_out = ", ".join(f"{cell.name} ({difference})" for cell, difference in outdated.items())
    missing = [cell for cell in cells if not cell.exists or cell in outdated]
    if outdated and (not partial or len(missing) == len(cells)):
        raise UserError(
            f"{len(outdated)} of {len(cells)} cells were built with settings other than those of params.yaml: {left_out}; "
            "`dvc repro -k grid/dvc.yaml` rebuilds them, `python -m stages.aggregate --partial` leaves them out"
        )
    rows = read_cells([cell for cell in cells if cell not in outdated], partial)
    for dataset, encoder in rows.select("dataset", "encoder").unique(maintain_order=True).rows():
        verify(sequences_directory(dataset), preprocess_command(dataset))
        verify(spectrum_directory(dataset, encoder), svd_command(dataset), [])
    require_metrics(names, rows.columns, "the cells", "`dvc repro grid/dvc.yaml`")
    default = rows.filter(pl.col("over") == "seeds")
    if not default.height:
        raise UserError("all cells of Table 2 are missing; `dvc repro -k grid/dvc.yaml` trains them")
    cutoff = max(params.evaluate.cutoffs)
    result_sets = results.result_sets(rows, names, cutoff, params.train)
    summary = result_sets[0].summary
    grouped = users.grouped(default, cutoff)
    cost = table_data.cost(default)
    tables = all_tables(params, rows, missing, result_sets, cost)
    headline = f"NDCG@{cutoff}"
    trivial, without = trivial_rows(params, default["dataset"].unique(maintain_order=True).to_list())
    for result_set in result_sets:
        name = result_set.file_name("table2")
        tables[name] = with_trivial(tables[name], result_set.summary, trivial, headline)
    if beyond := beyond_table(default, trivial):
        tables[beyond.name] = beyond
    held_out, measured_otherwise = held_out_table(params, default, grouped, cutoff)
    if held_out:
        tables[held_out.name] = held_out
    gains = over_base(default, cutoff)
    tables["leaderboard"] = leaderboard(gains, result_sets[0], headline, f"HR@{cutoff}")
    with atomic_directory(TABLES) as directory:
        for table in tables.values():
            table.write(directory)
        (directory / LEADERBOARD).write_text(terminal_text(result_sets[0], tables["leaderboard"]), encoding="utf-8")
        grouped.write_csv(directory / users.GROUPED)
        # Without seconds, the file is the same for every build of the same runs.
        runs = rows.drop("over", "run_directory", "training_seconds", "seconds_per_epoch", "inference_seconds")
        runs.write_csv(directory / "runs.csv")
    with atomic_directory(FIGURES) as directory:
        unusable = results.unusable_runs(rows, params.train)
        measured = Measured(rows, result_sets, gains, by_group(default, cutoff), cost, trivial, unusable)
        shown = illustrate(directory, measured, tables, headline)
    compared = [*sentences(summary, trivial, without, headline), *measured_otherwise]
    changes = write_decision(params, default, result_sets[0].comparisons, result_sets[0].unusable, trivial, missing)
    report = sections(params, rows, result_sets, tables, shown, missing, compared, changes)
    for file, text in ((REPORT, report_html(report, FIGURES)), (REPORT_MARKDOWN, report_markdown(report))):
        with atomic_file(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    absent = [cell.name for cell in missing if not cell.exists]
    summary_line = f"{len(rows)} runs in {TABLES}, {FIGURES} and {REPORT}"
    summary_line += f"; missing: {', '.join(absent)}" if absent else ""
    summary_line += f"; left out, built with other settings: {left_out}" if outdated else ""
    summary_line += f"; moved to scratch, no longer listed: {', '.join(moved)}" if moved else ""
    with suppress(UserError):  # without metrics of the selected run, there is no comparison to update
        write_comparison(params)
    summary_text = f"{summary_line}\n\n{(TABLES / LEADERBOARD).read_text(encoding='utf-8')}"
    return summary_text, [cell for cell in cells if cell not in missing]


def terminal_text(result_set: results.ResultSet, board: Table) -> str:
    """Return the verdict and the leaderboard for a terminal: no markup, at most WIDTH columns as far as names allow."""
    return f"{textwrap.fill(str(verdicts(result_set)[0]), WIDTH, break_on_hyphens=False)}\n\n{plain(board)}\n"
