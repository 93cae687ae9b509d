"""All figures of the report: drawn into metrics/figures, each with a sentence that says what it shows."""

from pathlib import Path

import polars as pl

from pipeline.grid.baselines import TITLES
from pipeline.report import captions
from pipeline.report.figures import Figures
from pipeline.report.formats import Table
from pipeline.report.mean_ranks import mean_ranks
from pipeline.report.measured import Measured
from pipeline.report.overviews import draw_attention, draw_mean_ranks, draw_slopes, slopes
from pipeline.report.trivial import best_trivial


def illustrate(directory: Path, measured: Measured, tables: dict[str, Table]) -> dict[str, str]:
    """Draw the figures that the results allow; return, by name, what each shows."""
    first, metric, default = measured.first, measured.metric, measured.default
    summary = first.summary
    leader = first.overall["leader"][0] if first.overall.height else measured.gains["adapter"][0]
    figures = Figures(directory, leader)
    without = best_trivial(measured.trivial, metric).with_columns(pl.col("trivial").replace(TITLES))
    figures.forest(measured.gains, metric, first.unusable)
    figures.comparison(summary, metric, without, first.unusable)
    figures.learning_curves(default)
    figures.spectra(default)
    figures.cost(measured.cost, summary, metric)
    figures.groups(measured.group_gains, "popularity", "popularity of the test item", metric)
    figures.groups(measured.group_gains, "history", "training items of the user", metric)
    changed = slopes(measured.result_sets, metric)
    draw_slopes(figures, changed, metric)
    draw_attention(figures, default)
    says = {
        "forest": lambda: captions.forest(measured.gains, first.unusable),
        "comparison": lambda: captions.comparison(summary, metric, first.unusable),
        "learning-curves": lambda: captions.learning_curves(default),
        "figure1": lambda: captions.spectra(default),
        "cost": lambda: captions.cost(measured.cost, summary, metric, first.unusable),
        "popularity": lambda: captions.groups(measured.group_gains, "popularity", first.unusable),
        "history": lambda: captions.groups(measured.group_gains, "history", first.unusable),
        "tuning": lambda: captions.tuning(changed, metric),
        "attention": lambda: captions.attention(default),
    }
    if "table4" in tables:
        unusable = measured.unusable.filter(pl.col("over").is_in(["seeds", "dims"]))
        figures.dimensions(tables["table4"].data, metric, unusable)
        says["dimensions"] = lambda: captions.dimensions(tables["table4"].data, metric, unusable)
    if ranked := mean_ranks(captions.without(summary, first.unusable), metric):
        draw_mean_ranks(figures, ranked)
        says["mean-ranks"] = lambda: captions.mean_ranks(ranked)
    return {name: say() for name, say in says.items() if name in figures.drawn}
