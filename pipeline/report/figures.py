"""Figures of the grid's results: every adapter's quality, gains, dims, cost, learning curves and spectra."""

from pathlib import Path

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.words import plural
from pipeline.grid.cells import KEYS, PAIR, SPECTRAN
from pipeline.report.canvas import FAINT, INK, Canvas
from pipeline.report.gains import ALL_PAIRS, BASE
from pipeline.report.titles import title


class Figures(Canvas):
    """The figures that the report shows, each with a panel per dataset and backbone."""

    def forest(self, gains: pl.DataFrame, metric: str, unusable: pl.DataFrame) -> None:
        """Draw every adapter's gain over Base and its interval over users. gains: from `gains.over_base`."""

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            self.rows(axis, block["adapter"].to_list())
            axis.axvline(0, color=INK, linewidth=1, linestyle="--")
            for y, row in enumerate(block.iter_rows(named=True)):
                text = gain_text(row)
                self.interval(axis, row["low"], row["high"], y, row["adapter"])
                hover = f"{title(row['adapter'])}: {metric} {row['mean']:.4f}, {text} over Base"
                self.dot(axis, row["gain"], y, row["adapter"], hover, _is_in(row, unusable))
                axis.text(1.02, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5)
            axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.set_xlabel(f"gain in test {metric} over Base, 95 % interval over users")

        known = gains.filter(pl.col("gain").is_not_null() & (pl.col("adapter") != BASE))
        self.panels("forest", known, draw, 1.1 + 0.24 * _most_rows(known))

    def comparison(self, summary: pl.DataFrame, metric: str, trivial: pl.DataFrame, unusable: pl.DataFrame) -> None:
        """Draw the test metric of every adapter: mean and standard deviation over seeds, and the best ranking without training.

        summary: from `results.summarise`; trivial: from `trivial.best_trivial`.
        """

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            block = block.sort("mean", descending=True, maintain_order=True)
            self.rows(axis, block["adapter"].to_list())
            for y, row in enumerate(block.iter_rows(named=True)):
                spread = f" ± {row['std']:.4f}" if row["std"] is not None else ""
                if row["std"] is not None:
                    self.interval(axis, row["mean"] - row["std"], row["mean"] + row["std"], y, row["adapter"])
                text = f"{row['mean']:.4f}{spread}"
                self.dot(axis, row["mean"], y, row["adapter"], f"{title(row['adapter'])}: {text}", _is_in(row, unusable))
                axis.text(1.02, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5)
            spread_named = ", ± standard deviation over seeds" if block["std"].is_not_null().any() else ""
            axis.set_xlabel(f"test {metric}{spread_named}")
            for row in trivial.filter(dataset=block["dataset"][0]).iter_rows(named=True):
                axis.axvline(row["value"], color=INK, linewidth=1, linestyle=":")
                axis.text(row["value"], -0.55, f" {row['trivial']}, without training", fontsize=8, va="bottom")
            axis.xaxis.set_major_locator(MaxNLocator(5))

        data = summary.filter(pl.col("metric") == metric)
        self.panels("comparison", data, draw, 1.2 + 0.24 * _most_rows(data))

    def dimensions(self, summary: pl.DataFrame, metric: str, unusable: pl.DataFrame) -> None:
        """Draw the test metric against dim. summary: the data of Table 4; hollow: runs that support no conclusion."""

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            ends = []
            for (adapter,), points in block.group_by("adapter", maintain_order=True):
                name = str(adapter)
                axis.plot(points["dim"], points["mean"], **self.line(name))
                for row in points.iter_rows(named=True):
                    if row["std"] is not None:
                        self.interval(axis, row["mean"] - row["std"], row["mean"] + row["std"], row["dim"], name, along_x=False)
                    self.dot(
                        axis,
                        row["dim"],
                        row["mean"],
                        name,
                        f"{title(name)}, dim {row['dim']}: {row['mean']:.4f}",
                        _is_in(row, unusable),
                    )
                ends.append((points["dim"][-1], points["mean"][-1], name))
            dims = sorted(set(block["dim"]))
            axis.set_xscale("log", base=2)
            axis.set_xticks(dims, [str(dim) for dim in dims])
            axis.minorticks_off()
            axis.set(xlabel="dim", ylabel=f"test {metric}")
            self.label_ends(axis, ends)

        self.panels("dimensions", summary.filter(pl.col("metric") == metric), draw)

    def learning_curves(self, rows: pl.DataFrame) -> None:
        """Draw validation NDCG@20 by epoch, one line per run."""
        axes = ("epoch", "epoch"), ("NDCG@20", "validation NDCG@20")
        self._curves("learning-curves", rows, "history.csv", *axes)

    def spectra(self, rows: pl.DataFrame) -> None:
        """Draw Figure 1: the cumulative share of variance in the leading directions of T's text part, or else of T, by run."""
        axes = (
            ("component", "leading directions"),
            ("cumulative_share", "cumulative share of variance"),
        )
        self._curves("figure1", rows, "spectrum.csv", *axes, limits=(0, 1.02), label_at=0.3)

    def cost(self, cost: pl.DataFrame, summary: pl.DataFrame, metric: str) -> None:
        """Draw the test metric against seconds of training. cost: from `table_data.cost`."""
        quality = summary.filter(pl.col("metric") == metric).select(*KEYS, "mean", "std")

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            axis.set_xscale("log")
            ends = []
            for row in block.iter_rows(named=True):
                name, seconds = row["adapter"], row["training_seconds"]
                if row["std"] is not None:
                    self.interval(axis, row["mean"] - row["std"], row["mean"] + row["std"], seconds, name, along_x=False)
                self.dot(axis, seconds, row["mean"], name, f"{title(name)}: {row['mean']:.4f} after {seconds:.1f} s of training")
                ends.append((seconds, row["mean"], name))
            axis.margins(x=0.1, y=0.1)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
            axis.set(xlabel="training of a run, s", ylabel=f"test {metric}")
            self.label_ends(axis, ends)

        self.panels("cost", cost.join(quality, on=KEYS, how="inner", maintain_order="left"), draw)

    def groups(self, grouped: pl.DataFrame, by: str, label: str, metric: str) -> None:
        """Draw the gain over Base by group of items or users. grouped: from `gains.by_group`; by, label: the kind of group.

        SpecTran and the leader have intervals over users; those of the others are shown where the pointer is.
        """

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            names = block["group"].unique(maintain_order=True).to_list()
            ends = []
            for (adapter,), points in block.group_by("adapter", maintain_order=True):
                name = str(adapter)
                places = [names.index(group) for group in points["group"]]
                axis.plot(places, points["gain"], **self.line(name))
                for x, row in zip(places, points.iter_rows(named=True), strict=True):
                    if name in (SPECTRAN, self.leader):
                        self.interval(axis, row["low"], row["high"], x, name, along_x=False)
                    hover = f"{title(name)}, {row['group']}: {gain_text(row)} over Base, {metric} {row['mean']:.4f}"
                    self.dot(axis, x, row["gain"], name, hover)
                ends.append((places[-1], points["gain"][-1], name))
            axis.axhline(0, color=INK, linewidth=1, linestyle="--")
            users = dict(block.select("group", "users").rows())
            axis.set_xticks(range(len(names)), [f"{name}\n{plural(users[name], 'user')}" for name in names])
            axis.margins(x=0.12)
            axis.yaxis.set_major_formatter(PercentFormatter(1, 0))
            axis.set(xlabel=label, ylabel=f"gain in test {metric} over Base")
            self.label_ends(axis, ends)

        self.panels(by, grouped.filter(pl.col("by") == by), draw)

    def _curves(
        self,
        name: str,
        rows: pl.DataFrame,
        file: str,
        x: tuple[str, str],
        y: tuple[str, str],
        limits: tuple[float, float] | None = None,
        label_at: float = 1,
    ) -> None:
        """Draw one column of a file of every run against another.

        x and y: the column and its label. label_at: the part of a line, from 0 to 1, at which its label points.
        """

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            ends = []
            for (adapter,), runs in block.group_by("adapter", maintain_order=True):
                for number, row in enumerate(runs.iter_rows(named=True)):
                    curve = pl.read_csv(Path(row["run_directory"]) / file, glob=False)
                    style = self.line(str(adapter)) | ({"linewidth": 0.7} if number else {})
                    (line,) = axis.plot(curve[x[0]], curve[y[0]], **style)
                    self.hover(line, f"{title(str(adapter))}, seed {row['seed']}: {y[1]} up to {max(curve[y[0]].to_list()):.4f}")
                    if not number:
                        place = round(label_at * (curve.height - 1))
                        ends.append((curve[x[0]][place], curve[y[0]][place], str(adapter)))
            axis.grid(axis="y", color=FAINT, linewidth=0.6)
            axis.set(xlabel=x[1], ylabel=y[1], ylim=limits)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            self.label_ends(axis, ends)

        self.panels(name, rows, draw)


def gain_text(row: dict) -> str:
    """Return "+10.0 % (+4.5 to +15.9)", or "+10.0 %" if the interval is not known."""
    interval = f" ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})" if row["low"] is not None else ""
    return f"{100 * row['gain']:+.1f} %{interval}"


def _most_rows(data: pl.DataFrame) -> int:
    return int(data.group_by(PAIR).len()["len"].max() or 1) if data.height else 1  # type: ignore[arg-type]


def _is_in(row: dict, unusable: pl.DataFrame) -> bool:
    """Return whether any of the runs that support no conclusion is of a row's adapter, block and dim."""
    keys = [key for key in (*KEYS, "dim") if key in row and key in unusable.columns]
    return bool(unusable.filter(*(pl.col(key) == row[key] for key in keys if row[key] != ALL_PAIRS)).height)
