"""Figures as SVG and PNG. The same numbers give the same bytes."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import polars as pl

from pipeline.grid.cells import BLOCK, KEYS, OURS
from pipeline.report.tables import title

# The HTML report replaces these two colours, so that figures follow the reader's light or dark mode.
INK, GROUND = "#1a1a1b", "#fffffe"
RED = "#d62728"  # for SpecTran
COLUMNS = 3  # panels in a row

matplotlib.use("Agg")
matplotlib.rcParams |= {
    "svg.hashsalt": "spectran",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"], INK),
    **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], GROUND),
}
from matplotlib import pyplot as plt  # noqa: E402 (the backend and its settings come first)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

Draw = Callable[[Axes, pl.DataFrame], None]


class Figures:
    """Draws figures into a directory. An adapter has the same colour in all of them; SpecTran is a thick red line."""

    def __init__(self, directory: Path, adapters: list[str]) -> None:
        self.directory = directory
        others = [adapter for adapter in adapters if adapter != OURS]
        name = "tab10" if len(others) < 10 else "tab20"
        palette = [colour for colour in map(to_hex, matplotlib.colormaps[name].colors) if colour != RED]  # type: ignore[attr-defined]
        self.colours = {adapter: palette[i % len(palette)] for i, adapter in enumerate(others)} | {OURS: RED}

    def comparison(self, summary: pl.DataFrame, metric: str) -> None:
        """Draw the test metric of every adapter: mean and standard deviation over seeds. summary: from `results.summarise`."""

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            names = [title(adapter) for adapter in block["adapter"]]
            colours = [self.colours[adapter] for adapter in block["adapter"]]
            axis.barh(names, block["mean"], xerr=block["std"].fill_null(0), color=colours, ecolor=INK)
            axis.invert_yaxis()
            axis.set_xlabel(f"test {metric}")

        self._panels("comparison", summary.filter(pl.col("metric") == metric), draw, legend=False)

    def dimensions(self, summary: pl.DataFrame, metric: str) -> None:
        """Draw the test metric against dim. summary: the data of Table 4."""

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            for adapter, points in block.group_by("adapter", maintain_order=True):
                spread = points["std"].fill_null(0)
                axis.errorbar(points["dim"], points["mean"], spread, marker="o", markersize=4, **self._style(str(adapter[0])))
            dims = sorted(set(block["dim"]))
            axis.set_xscale("log", base=2)
            axis.set_xticks(dims, [str(dim) for dim in dims])
            axis.minorticks_off()
            axis.set(xlabel="dim", ylabel=f"test {metric}")

        self._panels("dimensions", summary.filter(pl.col("metric") == metric), draw)

    def learning_curves(self, rows: pl.DataFrame) -> None:
        """Draw validation NDCG@20 by epoch, one line per run."""
        self._curves("learning-curves", rows, "history.csv", ("epoch", "epoch"), ("NDCG@20", "validation NDCG@20"))

    def spectra(self, rows: pl.DataFrame) -> None:
        """Draw Figure 1: the cumulative share of variance in the leading directions of the item table's text part, by run."""
        axes = ("component", "leading directions"), ("cumulative_share", "cumulative share")
        self._curves("figure1", rows, "spectrum.csv", *axes, limits=(0, 1.02))

    def cost(self, cost: pl.DataFrame, summary: pl.DataFrame, metric: str) -> None:
        """Draw the test metric against seconds of training. cost: from `table_data.cost`."""
        quality = summary.filter(pl.col("metric") == metric).select(*KEYS, "mean", "std")

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            for row in block.iter_rows(named=True):
                style = self._style(row["adapter"]) | {"linewidth": 1}
                axis.errorbar(row["training_seconds"], row["mean"], row["std"], row["training_seconds_std"], fmt="o", **style)
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
            axis.set(xlabel="training, s", ylabel=f"test {metric}")

        self._panels("cost", cost.join(quality, on=KEYS, how="inner", maintain_order="left"), draw)

    def groups(self, grouped: pl.DataFrame, by: str, label: str, metric: str) -> None:
        """Draw the test metric by group of items or users. grouped: from `users.grouped`; by, label: the kind of group."""

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            for adapter, points in block.group_by("adapter", maintain_order=True):
                spread = points["std"].fill_null(0)
                axis.errorbar(points["group"], points["mean"], spread, marker="o", markersize=4, **self._style(str(adapter[0])))
            users = dict(block.select("group", "users").rows())
            axis.set_xticks(range(len(users)), [f"{name}\n{number:,} users" for name, number in users.items()])
            axis.margins(x=0.15)
            axis.set(xlabel=label, ylabel=f"test {metric}", ylim=(0, None))

        self._panels(by, grouped.filter((pl.col("by") == by) & (pl.col("metric") == metric)), draw)

    def _curves(
        self,
        name: str,
        rows: pl.DataFrame,
        file: str,
        x: tuple[str, str],
        y: tuple[str, str],
        limits: tuple[float, float] | None = None,
    ) -> None:
        """Draw one column of a file of every run against another. x and y: the column and its label."""

        def draw(axis: Axes, block: pl.DataFrame) -> None:
            for adapter, runs in block.group_by("adapter", maintain_order=True):
                for number, run_directory in enumerate(runs["run_directory"]):
                    curve = pl.read_csv(Path(run_directory) / file)
                    style = self._style(str(adapter[0]))
                    axis.plot(curve[x[0]], curve[y[0]], **(style if not number else style | {"label": None, "alpha": 0.35}))
            axis.set(xlabel=x[1], ylabel=y[1], ylim=limits)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))

        self._panels(name, rows, draw)

    def _style(self, adapter: str) -> dict:
        return {"color": self.colours[adapter], "label": title(adapter), "linewidth": 2.2 if adapter == OURS else 1.2}

    def _panels(self, name: str, data: pl.DataFrame, draw: Draw, legend: bool = True) -> None:
        """Draw one panel per dataset and backbone, with a common legend below, and save the figure as `name`."""
        blocks = data.partition_by(BLOCK, maintain_order=True)
        if not blocks:
            return
        columns = min(COLUMNS, len(blocks))
        lines = -(-len(blocks) // columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(0.6 + 4.4 * columns, 3.4 * lines), squeeze=False, layout="constrained"
        )
        for axis, block in zip(axes.flat, blocks, strict=False):
            draw(axis, block)
            axis.set_title(f"{title(block['dataset'][0])}, {title(block['backbone'][0])}")
        for axis in axes.flat[len(blocks) :]:
            axis.set_axis_off()
        if legend:
            handles = {
                label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
            rows = -(-len(handles) // (3 * columns))
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=-(-len(handles) // rows))
        figure.savefig(self.directory / f"{name}.svg", metadata={"Date": None})
        (self.directory / "png").mkdir(exist_ok=True)  # the folder that `dvc plots` shows
        figure.savefig(self.directory / "png" / f"{name}.png", dpi=120)
        plt.close(figure)
