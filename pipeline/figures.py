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


def learning_curves(histories: dict[tuple[str, str], dict[str, list[pl.DataFrame]]], path: Path) -> None:
    """Validation NDCG@20 by epoch: a panel per (dataset, backbone), a line per adapter and seed."""
    figure, axes = plt.subplots(1, len(histories), figsize=(6 * len(histories), 4), squeeze=False)
    for axis, ((dataset, backbone), adapters) in zip(axes[0], histories.items(), strict=True):
        for number, (adapter, curves) in enumerate(adapters.items()):
            for seed, curve in enumerate(curves):
                label = title(adapter) if seed == 0 else None
                axis.plot(curve["epoch"], curve["NDCG@20"], color=f"C{number}", label=label, alpha=1 if seed == 0 else 0.4)
        axis.set(title=f"{title(dataset)}, {title(backbone)}", xlabel="epoch", ylabel="validation NDCG@20")
        axis.legend()
    _save(figure, path)


def cumulative_spectra(spectra: dict[tuple[str, str], dict[str, list[pl.DataFrame]]], path: Path) -> None:
    """Figure 1, the share of variance in the leading directions: a panel per (dataset, backbone), a line per adapter and seed."""
    figure, axes = plt.subplots(1, len(spectra), figsize=(6 * len(spectra), 4), squeeze=False)
    for axis, ((dataset, backbone), adapters) in zip(axes[0], spectra.items(), strict=True):
        for number, (adapter, curves) in enumerate(adapters.items()):
            for seed, curve in enumerate(curves):
                label = title(adapter) if seed == 0 else None
                share = curve["cumulative_share"]
                axis.plot(curve["component"], share, color=f"C{number}", label=label, alpha=1 if seed == 0 else 0.4)
        axis.set(title=f"{title(dataset)}, {title(backbone)}", xlabel="leading directions", ylabel="cumulative share of variance")
        axis.set_ylim(0, 1.02)
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
