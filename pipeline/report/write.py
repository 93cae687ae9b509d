"""The grid's outputs: tables, figures, and the report as HTML and Markdown."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from common.errors import UserError
from pipeline.artifacts import atomic_directory, atomic_file, verify
from pipeline.grid.cells import Cell, listed_cells, move_unlisted_cells, read_cells
from pipeline.params import Params
from pipeline.report import users
from pipeline.report.beyond import beyond_table
from pipeline.report.conclusions import configuration, verdicts
from pipeline.report.decision import write_decision
from pipeline.report.formats import Table
from pipeline.report.held_out import held_out_table
from pipeline.report.html import report_html
from pipeline.report.illustrations import illustrate
from pipeline.report.leaderboard import leaderboard, plain
from pipeline.report.measured import Measured, of_table2
from pipeline.report.results import table_metrics
from pipeline.report.sections import report_markdown, sections
from pipeline.report.selected import SELECTED, require_metrics, write_comparison
from pipeline.report.tables import all_tables
from pipeline.report.trivial import missing_baselines, sentences, with_trivial
from pipeline.runs import EVALUATED, preprocess_command, sequences_directory, spectrum_directory, svd_command

TABLES = Path("metrics/tables")
FIGURES = Path("metrics/figures")
LEADERBOARD = "leaderboard.txt"
REPORT = Path("metrics/report.html")
WIDTH = 98  # columns of the text for a terminal
REPORT_MARKDOWN = Path("metrics/report.md")


def write_report(params: Params, partial: bool = False) -> tuple[str, list[Cell]]:
    """Write metrics/tables, metrics/figures, both reports, metrics/decision.md and metrics/selected.md from the cells.

    Returns a summary, which ends with the verdict and the leaderboard as plain text, and the cells that are in the report.
    Cells that the lists of params.yaml do not name are moved into scratch. With `partial`, cells that are missing or were
    built with other settings or data are left out. metrics/selected.md stays as it is if no run was tested here, or if
    metrics/evaluation.json is of another one; the summary says so in the second case.

    Raises UserError if cells are missing or were built with other settings or data, unless `partial`; if no cell of Table 2
    is left; if data is damaged; and if a metric was not measured.
    """
    chosen = choose_cells(params, partial)
    measured = Measured.of(params, read_rows(params, chosen, partial))
    tables, notes = make_tables(params, measured, chosen.missing)
    terminal = terminal_text(measured, tables["leaderboard"])
    with atomic_directory(TABLES) as directory:
        for table in tables.values():
            table.write(directory)
        (directory / LEADERBOARD).write_text(terminal, encoding="utf-8")
        measured.grouped.write_csv(directory / users.GROUPED)
        # Without seconds, the file is the same for every build of the same runs.
        runs = measured.rows.drop("over", "run_directory", "training_seconds", "seconds_per_epoch", "inference_seconds")
        runs.write_csv(directory / "runs.csv")
    with atomic_directory(FIGURES) as directory:
        shown = illustrate(directory, measured, tables)
    changes = write_decision(params, measured, chosen.missing)
    report = sections(params, measured, tables, shown, chosen.missing, notes, changes)
    for file, text in ((REPORT, report_html(report, FIGURES)), (REPORT_MARKDOWN, report_markdown(report))):
        with atomic_file(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    summary = f"{len(measured.rows)} runs in {TABLES}, {FIGURES} and {REPORT}{chosen}"
    if EVALUATED.is_file():
        try:
            write_comparison(params)
        except UserError as error:
            summary += f"; {SELECTED} is not updated: {error}"
    return f"{summary}\n\n{terminal}", chosen.reported


@dataclass(frozen=True)
class Chosen:
    """The cells of params.yaml's lists.

    outdated: those that exist but were built with other settings or data, with what differs. moved: names of cells that are no
    longer listed, now in scratch. of_other_code: those in the report that the code and data here would not give again. As text,
    the end of a line that names what is not in the report, or is of other code.
    """

    listed: list[Cell]
    outdated: dict[Cell, str]
    moved: list[str]
    of_other_code: list[Cell]

    @property
    def missing(self) -> list[Cell]:
        """The listed cells that are not in the report."""
        return [cell for cell in self.listed if not cell.exists or cell in self.outdated]

    @property
    def reported(self) -> list[Cell]:
        """The cells in the report."""
        return [cell for cell in self.listed if cell.exists and cell not in self.outdated]

    def __str__(self) -> str:
        said = {
            "missing": [cell.name for cell in self.missing if cell not in self.outdated],
            "left out, built with other settings or data": differences(self.outdated),
            "moved to scratch, no longer listed": self.moved,
            "by other code, or from another machine's spectrum": [cell.name for cell in self.of_other_code],
        }
        return "".join(f"; {what}: {', '.join(names)}" for what, names in said.items() if names)


def differences(outdated: dict[Cell, str]) -> list[str]:
    """Return the names of cells with what differs: "office-sasrec-base (train.epochs)"."""
    return [f"{cell.name} ({difference})" for cell, difference in outdated.items()]


def choose_cells(params: Params, partial: bool) -> Chosen:
    """Choose the cells of the report; raise UserError if some are outdated, unless `partial` and another is left."""
    cells = listed_cells(params.grid)
    moved = move_unlisted_cells(cells)
    outdated = {cell: difference for cell in cells if cell.exists and (difference := cell.differs(params))}
    others = [cell for cell in cells if cell.exists and cell not in outdated and not cell.is_of_these_runs(params)]
    chosen = Chosen(cells, outdated, moved, others)
    if outdated and not (partial and chosen.reported):
        raise UserError(
            f"{len(outdated)} of {len(cells)} cells were built with other settings or data than those here: "
            f"{', '.join(differences(outdated))}; `python -m stages.grid` rebuilds them, "
            "`python -m stages.aggregate --partial` leaves them out"
        )
    return chosen


def read_rows(params: Params, chosen: Chosen, partial: bool) -> pl.DataFrame:
    """Return a row per run of the chosen cells; raise UserError if a cell is missing, unless `partial`, or data is damaged."""
    rows = read_cells([cell for cell in chosen.listed if cell not in chosen.outdated], partial)
    for dataset, encoder in rows.select("dataset", "encoder").unique(maintain_order=True).rows():
        verify(sequences_directory(dataset), preprocess_command(dataset))
        verify(spectrum_directory(dataset, encoder), svd_command(dataset), [])
    require_metrics(table_metrics(params.evaluate.cutoffs), rows.columns, "the cells", "`dvc repro grid/dvc.yaml`")
    if of_table2(rows).is_empty():
        raise UserError("all cells of Table 2 are missing; `python -m stages.grid` trains them")
    return rows


def make_tables(params: Params, measured: Measured, missing: list[Cell]) -> tuple[dict[str, Table], list[str]]:
    """Return the tables by name, and sentences that compare the adapters with rankings without training."""
    tables = all_tables(params, measured, missing)
    for result_set in measured.result_sets:
        name = result_set.file_name("table2")
        tables[name] = with_trivial(tables[name], result_set.summary, measured.trivial, measured.metric)
    held_out, measured_otherwise = held_out_table(params, measured.default, measured.grouped, measured.cutoff)
    beyond = beyond_table(measured.default, measured.trivial)
    tables |= {table.name: table for table in (beyond, held_out) if table}
    tables["leaderboard"] = leaderboard(measured.gains, measured.first, measured.metric, f"HR@{measured.cutoff}")
    several = len(measured.result_sets) > 1
    compared = [
        sentence
        for result_set in measured.result_sets
        for sentence in sentences(
            result_set.summary, measured.trivial, measured.metric, configuration(result_set.loss) if several else ""
        )
    ]
    return tables, [*compared, *missing_baselines(measured.without_trivial), *measured_otherwise]


def terminal_text(measured: Measured, board: Table) -> str:
    """Return the first verdict and the leaderboard for a terminal: no markup, at most WIDTH columns as far as names allow."""
    said = str(verdicts(measured.first, alone=len(measured.result_sets) == 1)[0])
    return f"{textwrap.fill(said, WIDTH, break_on_hyphens=False)}\n\n{plain(board)}\n"
