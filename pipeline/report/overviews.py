"""Figures beside those of single measurements: what tuning changes, mean ranks over pairs, and SpecTran's weights W."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from safetensors.numpy import load_file

from pipeline.artifacts import read_json
from pipeline.grid.cells import KEYS, PAIR, SPECTRAN, WEIGHTS
from pipeline.report.canvas import INK, SPECTRAN_COLOUR, Canvas
from pipeline.report.gains import ALL_PAIRS
from pipeline.report.mean_ranks import MeanRanks
from pipeline.report.results import ResultSet
from pipeline.report.titles import title

SETTINGS = {None: "as in\nparams.yaml", "info_nce": "tuned,\nInfoNCE", "cross_entropy": "tuned,\nfull softmax"}
TILES = (32, 64)  # of the picture of W: tiles along the output dimensions and along the directions of the text


def slopes(result_sets: list[ResultSet], metric: str) -> pl.DataFrame:
    """Return the mean of every cell by the way it was set; empty if nothing was tuned.

    Columns: KEYS, mean, setting, unusable (whether the cell has a run that supports no conclusion).
    """
    if len(result_sets) < 2:
        return pl.DataFrame(schema={**dict.fromkeys(KEYS, pl.String), "mean": float, "setting": pl.String, "unusable": bool})
    parts = []
    for result_set in result_sets:
        unusable = result_set.unusable.select(*KEYS, unusable=True).unique()
        marked = result_set.summary.filter(metric=metric).join(unusable, on=KEYS, how="left", maintain_order="left")
        setting = SETTINGS.get(result_set.loss, f"tuned,\n{title(str(result_set.loss))}")
        parts.append(marked.select(*KEYS, "mean", pl.lit(setting).alias("setting"), pl.col("unusable").fill_null(value=False)))
    every = pl.concat(parts)
    return every.filter(pl.len().over(KEYS) > 1)  # a cell that was set in one way only has no slope


def draw_slopes(canvas: Canvas, data: pl.DataFrame, metric: str) -> None:
    """Draw how the order of adapters changes with their settings. data: from `slopes`."""

    def draw(axis: Axes, block: pl.DataFrame) -> None:
        settings = block["setting"].unique(maintain_order=True).to_list()
        ends = []
        for (adapter,), points in block.group_by("adapter", maintain_order=True):
            name = str(adapter)
            places = [settings.index(setting) for setting in points["setting"]]
            axis.plot(places, points["mean"], **canvas.line(name))
            for x, row in zip(places, points.iter_rows(named=True), strict=True):
                setting = row["setting"].replace("\n", " ")
                canvas.dot(axis, x, row["mean"], name, f"{title(name)}, {setting}: {row['mean']:.4f}", row["unusable"])
            ends.append((places[-1], points["mean"][-1], name))
        axis.set_xticks(range(len(settings)), settings)
        axis.set(ylabel=f"test {metric}")
        canvas.label_ends(axis, ends)

    canvas.panels("tuning", data, draw)


def draw_mean_ranks(canvas: Canvas, found: MeanRanks) -> None:
    """Draw the adapters by their mean rank, with a bar as long as the critical difference from the best."""
    names = found.ranks["adapter"].to_list()

    def draw(axis: Axes, block: pl.DataFrame) -> None:
        canvas.rows(axis, names)
        best = block["rank"][0]
        axis.plot([best, best + found.critical], [-0.45, -0.45], color=INK, linewidth=3, solid_capstyle="butt")
        axis.axvline(best + found.critical, color=INK, linewidth=1, linestyle=":")
        for y, row in enumerate(block.iter_rows(named=True)):
            canvas.dot(axis, row["rank"], y, row["adapter"], f"{title(row['adapter'])}: mean rank {row['rank']:.2f}")
            axis.text(1.02, y, f"{row['rank']:.2f}", transform=axis.get_yaxis_transform(), va="center", fontsize=8.5)
        axis.set_xlim(0.8, max(len(names), best + found.critical) + 0.2)
        axis.set_xlabel("mean rank, 1 is best; bar: critical difference from the first")

    data = found.ranks.with_columns(pl.lit(ALL_PAIRS).alias(key) for key in PAIR)
    canvas.panels("mean-ranks", data, draw, 1.2 + 0.24 * len(names))


def attention_weights(run_directory: Path) -> np.ndarray | None:
    """Return SpecTran's W = softshrink(Q Kᵀ) + [diag(D), 0] of a trained run, (d, r); None without weights or attention.

    Published runs have no weights.
    """
    file = run_directory / WEIGHTS
    tensors = load_file(file) if file.is_file() else {}
    parts = [tensors.get(f"adapter.{name}") for name in ("query", "key", "threshold")]
    if any(part is None for part in parts):
        return None
    query, key, threshold = (np.asarray(part, dtype=np.float64) for part in parts)
    product = query @ key.T
    weights: np.ndarray = np.sign(product) * np.maximum(np.abs(product) - threshold, 0)
    principal = read_json(run_directory / "analysis.json", "evaluation")["learned"]["principal"]
    weights[np.arange(len(principal)), np.arange(len(principal))] += principal
    return weights


def draw_attention(canvas: Canvas, rows: pl.DataFrame) -> None:
    """Draw |W| of SpecTran's first run on each pair, averaged in tiles: the stronger the colour, the larger.

    rows: the runs of Table 2.
    """
    runs = rows.filter(pl.col("adapter") == SPECTRAN).unique(PAIR, keep="first", maintain_order=True)
    found = {directory: attention_weights(Path(directory)) for directory in runs["run_directory"]}
    known = [directory for directory, weights in found.items() if weights is not None]

    def draw(axis: Axes, block: pl.DataFrame) -> None:
        weights = found[block["run_directory"][0]]
        assert weights is not None
        size = np.abs(tiles(weights))
        picture = np.empty((*size.shape, 4))
        picture[..., :3] = to_rgb(SPECTRAN_COLOUR)
        picture[..., 3] = np.minimum(1, size / np.quantile(size, 0.99))
        height, width = weights.shape
        image = axis.imshow(picture, extent=(0.5, width + 0.5, height + 0.5, 0.5), aspect="auto", interpolation="nearest")
        of = f"{height} output dimensions and {width} directions"
        canvas.hover(image, f"|W| of {of}, in tiles whose mean is {size.max():.2f} at most")
        axis.set(xlabel="direction of the text, the strongest first", ylabel="output dimension")

    canvas.panels("attention", runs.filter(pl.col("run_directory").is_in(known)), draw)


def tiles(weights: np.ndarray) -> np.ndarray:
    """Return the mean absolute weights of TILES tiles, or of fewer if the matrix has fewer rows or columns."""
    bands = [np.array_split(np.arange(size), min(size, count)) for size, count in zip(weights.shape, TILES, strict=True)]
    size = np.abs(weights)
    rows = np.stack([size[band].mean(0) for band in bands[0]])
    return np.stack([rows[:, band].mean(1) for band in bands[1]], axis=1)
