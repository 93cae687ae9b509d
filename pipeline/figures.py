"""Figures as SVG, the same bytes for the same numbers."""

from pathlib import Path

import matplotlib
import polars as pl

from pipeline.tables import title

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "spectran"
from matplotlib import pyplot as plt  # noqa: E402 (the backend is chosen first)


def _save(figure: "plt.Figure", path: Path) -> None:
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


Curves = dict[tuple[str, str], dict[str, list[pl.DataFrame]]]


def learning_curves(histories: Curves, path: Path) -> None:
    """Validation NDCG@20 by epoch: a panel per (dataset, backbone), a line per adapter and seed."""
    _lines(histories, ("epoch", "epoch"), ("NDCG@20", "validation NDCG@20"), None, path)


def cumulative_spectra(spectra: Curves, path: Path) -> None:
    """Figure 1, the share of variance in the leading directions: a panel per (dataset, backbone), a line per adapter and seed."""
    share = ("cumulative_share", "cumulative share of variance")
    _lines(spectra, ("component", "leading directions"), share, (0, 1.02), path)


def _lines(panels: Curves, x: tuple[str, str], y: tuple[str, str], limits: tuple[float, float] | None, path: Path) -> None:
    """Draw column against column; `x` and `y` are a column and its label."""
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4), squeeze=False)
    for axis, ((dataset, backbone), adapters) in zip(axes[0], panels.items(), strict=True):
        for number, (adapter, curves) in enumerate(adapters.items()):
            for seed, curve in enumerate(curves):
                label = title(adapter) if seed == 0 else None
                axis.plot(curve[x[0]], curve[y[0]], color=f"C{number}", label=label, alpha=1 if seed == 0 else 0.4)
        axis.set(title=f"{title(dataset)}, {title(backbone)}", xlabel=x[1], ylabel=y[1], ylim=limits)
        axis.legend()
    _save(figure, path)


def comparison(summary: pl.DataFrame, metric: str, path: Path) -> None:
    """Test `metric` of every adapter, mean and standard deviation over seeds: a panel per (dataset, backbone)."""
    blocks = summary.filter(pl.col("metric") == metric).partition_by(["dataset", "backbone"], maintain_order=True)
    figure, axes = plt.subplots(1, len(blocks), figsize=(6 * len(blocks), 4), squeeze=False)
    for axis, block in zip(axes[0], blocks, strict=True):
        names = [title(adapter) for adapter in block["adapter"]]
        axis.barh(names, block["mean"], xerr=block["std"].fill_null(0), color=[f"C{i}" for i in range(len(names))])
        axis.invert_yaxis()
        axis.set(title=f"{title(block['dataset'][0])}, {title(block['backbone'][0])}", xlabel=f"test {metric}")
    _save(figure, path)
