"""The paper's tables from the grid's cells: means over seeds beside the published numbers."""

import re
from pathlib import Path

import polars as pl

from pipeline.cells import KEYS

PAPER = Path(__file__).parents[1] / "metrics/paper"
TITLES = {
    "base": "Base (ID only)",
    "morec": "MoRec",
    "unisrec": "UniSRec",
    "llm_esr": "LLM-ESR",
    "rlmrec": "RLMRec",
    "whitenrec": "WhitenRec",
    "llminit": "LLMInit",
    "alphafuse": "AlphaFuse",
    "spectran": "SpecTran",
    "sasrec": "SASRec",
    "bert4rec": "BERT4Rec",
    "hstu": "HSTU",
}
OURS = "spectran"


def title(name: str) -> str:
    """The name as papers print it."""
    return TITLES.get(name, name.capitalize())


def table_metrics(cutoffs: list[int]) -> list[str]:
    """Metrics in the order of the paper's Table 2."""
    return [*(f"NDCG@{k}" for k in cutoffs), *(f"HR@{k}" for k in cutoffs)]


def published(name: str = "table2") -> pl.DataFrame:
    """A table of the paper (LLaMA3-8B embeddings), as data."""
    return pl.read_csv(PAPER / f"{name}.csv")


def summarise(rows: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Long table: the cell, metric, mean and sample standard deviation over seeds, number of seeds, the paper's number."""
    measured = (
        rows.unpivot(on=names, index=[*KEYS, "seed"], variable_name="metric", value_name="value")
        .group_by([*KEYS, "metric"], maintain_order=True)
        .agg(mean=pl.col("value").mean(), std=pl.col("value").std(), seeds=pl.len())
    )
    paper = published().unpivot(index=KEYS, variable_name="metric", value_name="paper")
    return measured.join(paper, on=[*KEYS, "metric"], how="left", maintain_order="left")


def improvements(summary: pl.DataFrame) -> pl.DataFrame:
    """Relative improvement of SpecTran over the best other adapter: dataset, backbone, metric, best adapter, improvement."""
    keys = ["dataset", "backbone", "metric"]
    others = (
        summary.filter(pl.col("adapter") != OURS)
        .sort("mean", descending=True, maintain_order=True)
        .group_by(keys, maintain_order=True)
        .agg(best=pl.col("adapter").first(), best_mean=pl.col("mean").first())
    )
    return (
        summary.filter(pl.col("adapter") == OURS)
        .join(others, on=keys, how="inner", maintain_order="left")
        .select(*keys, "best", improvement=pl.col("mean") / pl.col("best_mean") - 1)
    )


def blocks(summary: pl.DataFrame) -> list[pl.DataFrame]:
    """The summary of each (dataset, backbone), in order."""
    return summary.partition_by(["dataset", "backbone"], maintain_order=True)


def _marks(block: pl.DataFrame, metric: str) -> dict[str, str]:
    """Adapter -> "best" or "second" for a metric of a block."""
    order = block.filter(pl.col("metric") == metric).sort("mean", descending=True, maintain_order=True)["adapter"].to_list()
    return dict(zip(order, ("best", "second"), strict=False)) if len(order) > 1 else {}


def _grid(block: pl.DataFrame, improvement: pl.DataFrame, marked: dict[str, str], spread: str, percent: str) -> list[list[str]]:
    """Cells of a block as text: header, a row per adapter, the improvement of SpecTran where it is there."""
    names = block["metric"].unique(maintain_order=True).to_list()
    values = {(row["adapter"], row["metric"]): row for row in block.iter_rows(named=True)}
    lines = [["Adapter", *names]]
    for adapter in block["adapter"].unique(maintain_order=True):
        line = [title(adapter)]
        for name in names:
            row = values[adapter, name]
            text = marked[_marks(block, name).get(adapter, "")].format(f"{row['mean']:.4f}")
            line.append(text + (spread.format(f"{row['std']:.4f}") if row["std"] is not None else ""))
        lines.append(line)
    first = block.row(0, named=True)
    mine = improvement.filter((pl.col("dataset") == first["dataset"]) & (pl.col("backbone") == first["backbone"]))
    if mine.height:
        gains = dict(zip(mine["metric"], mine["improvement"], strict=True))
        lines.append(["SpecTran over best other", *(f"{100 * gains[name]:+.2f}{percent}" for name in names)])
    return lines


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table, padded so that it reads well as plain text too."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def table2_markdown(summary: pl.DataFrame) -> str:
    """Table 2, one block per (dataset, backbone): best bold, second underlined, mean ± standard deviation over seeds."""
    improvement = improvements(summary)
    marked = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    parts = []
    for block in blocks(summary):
        first = block.row(0, named=True)
        parts += [
            f"### {title(first['dataset'])}, {title(first['backbone'])} ({_seeds(first['seeds'])})",
            markdown(_grid(block, improvement, marked, " ± {}", " %")),
        ]
    if improvement.height:
        parts.append(
            f"SpecTran over the best other adapter, on average: {100 * improvement['improvement'].to_numpy().mean():+.2f} %."
        )
    return "\n\n".join(parts) + "\n"


def _latex(text: str) -> str:
    """Text whose special characters LaTeX prints: a dataset may be called `my_shop`."""
    return re.sub(r"([_&#%$])", r"\\\1", text)


def table2_latex(summary: pl.DataFrame) -> str:
    """Table 2 for LaTeX (booktabs), one block per (dataset, backbone)."""
    improvement = improvements(summary)
    marked = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    width = summary["metric"].n_unique()
    parts = [r"\begin{tabular}{l" + "c" * width + "}", r"\toprule"]
    for number, block in enumerate(blocks(summary)):
        first = block.row(0, named=True)
        header, *body = _grid(block, improvement, marked, r" {{\scriptsize $\pm$ {}}}", r"\,\%")
        if number:
            parts.append(r"\midrule")
        name = _latex(f"{title(first['dataset'])}, {title(first['backbone'])}")
        parts.append(rf"\multicolumn{{{width + 1}}}{{l}}{{{name}}} \\")
        parts += [" & ".join(header) + r" \\", r"\midrule", *(" & ".join(line) + r" \\" for line in body)]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n"


def selected_markdown(figures: dict[str, float], run: dict[str, str], cells: pl.DataFrame | None, names: list[str]) -> str:
    """The selected run, beside the paper's row for it and the grid's cells so far of the same dataset and backbone."""
    lines = [
        ["", *names],
        [f"this run ({run['adapter']}, dim {run['dim']}, seed {run['seed']})", *(f"{figures[n]:.4f}" for n in names)],
    ]
    paper = published().filter(pl.all_horizontal(pl.col(key) == run[key] for key in KEYS))
    if paper.height:
        row = paper.row(0, named=True)
        lines.append(["paper (LLaMA3-8B, dim 128)", *(f"{row[n]:.4f}" if n in row else "–" for n in names)])
    if cells is not None:
        here = cells.filter((pl.col("dataset") == run["dataset"]) & (pl.col("backbone") == run["backbone"]))
        for key, group in here.group_by(["adapter", "dim", "encoder"], maintain_order=True):
            adapter, dim, encoder = map(str, key)
            label = f"grid: {adapter}, {encoder}, dim {dim} ({_seeds(group.height)})"
            lines.append([label, *(f"{group[n].to_numpy().mean():.4f}" if n in group.columns else "–" for n in names)])
    return f"## {title(run['dataset'])}, {title(run['backbone'])}, encoder {run['encoder']}\n\n{markdown(lines)}\n"
