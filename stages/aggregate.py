"""Tables, figures and report of the grid: `python -m stages.aggregate`; with `--selected`, the selected run beside the paper."""

from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

from models.errors import UserError
from pipeline.artifacts import atomic_directory, atomic_file, read_json
from pipeline.cells import cell_directory, listed_cells, read_cells, set_aside_unlisted
from pipeline.metrics import metric_names
from pipeline.params import Params, load_params
from stages import run

TABLES = Path("metrics/tables")
FIGURES = Path("metrics/figures")
REPORT = Path("metrics/report.md")
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
    from pipeline.tables import selected_markdown

    figures = read_json(EVALUATION, "`python -m stages.evaluate`")
    names = metric_names(params.evaluate.cutoffs)
    require(names, figures, f"{EVALUATION} lacks", "`python -m stages.evaluate`")
    cells = [cell for cell in listed_cells(params.grid) if (cell_directory(*cell) / "metrics.csv").is_file()]
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
    from pipeline.report import headline_metric, read_histories, read_spectra, report
    from pipeline.tables import summarise, table2_latex, table2_markdown, table_metrics

    cells = listed_cells(params.grid)
    aside = set_aside_unlisted(cells)
    rows = read_cells(cells, partial)
    require(table_metrics(params.evaluate.cutoffs), rows.columns, "the cells lack", "`dvc repro grid/dvc.yaml`")
    summary = summarise(rows, table_metrics(params.evaluate.cutoffs))
    with atomic_directory(TABLES) as directory:
        summary.write_csv(directory / "table2.csv")
        rows.drop("training_seconds", "seconds_per_epoch", "inference_seconds").write_csv(directory / "runs.csv")
        (directory / "table2.md").write_text(table2_markdown(summary), encoding="utf-8")
        (directory / "table2.tex").write_text(table2_latex(summary), encoding="utf-8")

    from pipeline import figures

    with atomic_directory(FIGURES) as directory:
        figures.comparison(summary, headline_metric(summary), directory / "comparison.svg")
        figures.learning_curves(read_histories(rows), directory / "learning-curves.svg")
        figures.cumulative_spectra(read_spectra(rows), directory / "figure1.svg")
    with atomic_file(REPORT) as file:
        file.write_text(report(params, rows, summary), encoding="utf-8")
    moved = f"; set aside, no longer listed: {', '.join(aside)}" if aside else ""
    return f"{len(rows)} runs in {TABLES}, {FIGURES} and {REPORT}{moved}"


if __name__ == "__main__":
    run(main)
