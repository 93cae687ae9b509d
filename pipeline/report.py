"""The grid's report in words, tables and figures, all computed from the cells."""

import polars as pl

from models.errors import UserError
from pipeline.artifacts import read_json
from pipeline.cells import cell_directory
from pipeline.params import Params
from pipeline.runs import sequences_directory
from pipeline.tables import OURS, blocks, improvements, markdown, table2_markdown, title


def read_histories(rows: pl.DataFrame) -> dict[tuple[str, str], dict[str, list[pl.DataFrame]]]:
    """Learning curves of every run, by (dataset, backbone), then adapter."""
    return _read_seeds(rows, "history.csv")


def read_spectra(rows: pl.DataFrame) -> dict[tuple[str, str], dict[str, list[pl.DataFrame]]]:
    """Cumulative spectra of every run, by (dataset, backbone), then adapter."""
    return _read_seeds(rows, "spectrum.csv")


def _read_seeds(rows: pl.DataFrame, name: str) -> dict[tuple[str, str], dict[str, list[pl.DataFrame]]]:
    found: dict[tuple[str, str], dict[str, list[pl.DataFrame]]] = {}
    for row in rows.iter_rows(named=True):
        cell = (row["dataset"], row["backbone"], row["adapter"])
        file = cell_directory(*cell) / f"seed-{row['seed']}" / name
        if not file.is_file():
            raise UserError(f"{file} is missing; `dvc repro grid/dvc.yaml:cell@{'-'.join(cell)}` makes the cell again")
        found.setdefault(cell[:2], {}).setdefault(cell[2], []).append(pl.read_csv(file))
    return found


def headline_metric(summary: pl.DataFrame) -> str:
    """NDCG at the largest cutoff: what validation chooses by, at the default cutoffs."""
    return [name for name in summary["metric"].unique(maintain_order=True) if name.startswith("NDCG")][-1]


def conclusion(summary: pl.DataFrame) -> str:
    """One sentence per (dataset, backbone): which adapter is best, by how much, and whether seeds agree."""
    sentences = []
    for block in blocks(summary):
        metric = headline_metric(block)
        ranked = block.filter(pl.col("metric") == metric).sort("mean", descending=True, maintain_order=True)
        first = ranked.row(0, named=True)
        where = f"{title(first['dataset'])}, {title(first['backbone'])}"
        sentence = f"{where}: {title(first['adapter'])} has the best {metric}, {first['mean']:.4f}"
        if ranked.height > 1:
            second = ranked.row(1, named=True)
            gap = first["mean"] - second["mean"]
            spread = max(first["std"] or 0.0, second["std"] or 0.0)
            sentence += f", {100 * gap / second['mean']:.1f} % above {title(second['adapter'])}"
            if first["seeds"] < 2:
                sentence += " (one seed: no spread is known)"
            elif gap <= spread:
                sentence += f", which is within the spread over seeds ({spread:.4f}): no winner"
            else:
                sentence += f", a gap of {gap / spread:.1f} standard deviations over seeds" if spread else ""
        sentences.append(f"- {sentence}.")
    if OURS in summary["adapter"] and summary["adapter"].n_unique() > 1:
        worse = improvements(summary).filter(pl.col("improvement") < 0).unique(["dataset", "backbone"], maintain_order=True)
        lost = [f"{title(row['dataset'])}/{title(row['backbone'])}" for row in worse.iter_rows(named=True)]
        if lost:
            sentences.append(f"- SpecTran is beaten by another adapter in at least one metric on {', '.join(lost)}.")
    return "\n".join(sentences)


def report(params: Params, rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    """The whole report, Markdown."""
    sizes = [["Dataset", "Users", "Items", "Interactions", "Density"]]
    for dataset in rows["dataset"].unique(maintain_order=True):
        size = read_json(sequences_directory(dataset) / "statistics.json", f"the preprocess stage of {dataset}")
        sizes.append(
            [
                title(dataset),
                *(f"{size[name]:,}" for name in ("users", "items", "interactions")),
                f"{100 * size['density']:.3f} %",
            ]
        )
    cost = [["Dataset", "Backbone", "Adapter", "Trainable parameters", "Epochs", "Best epoch"]]
    for row in (
        rows.group_by(["dataset", "backbone", "adapter"], maintain_order=True)
        .agg(pl.col("trainable_parameters").first(), pl.col("epochs", "best_epoch").mean())
        .iter_rows(named=True)
    ):
        cost.append(
            [
                title(row["dataset"]),
                title(row["backbone"]),
                title(row["adapter"]),
                f"{row['trainable_parameters']:,}",
                f"{row['epochs']:.0f}",
                f"{row['best_epoch']:.0f}",
            ]
        )
    train = params.train
    against = "full softmax," if train.loss == "cross_entropy" else f"{train.negatives} negatives a target,"
    settings = (
        f"Encoder {rows['encoder'][0]}, dim {rows['dim'][0]}, {rows['seed'].n_unique()} seeds. One budget for every method: "
        f"Adam, learning rate {train.learning_rate:g}, weight decay {train.weight_decay:g}, batches of {train.batch_size} users, "
        f"{against} temperature {train.temperature:g}, at most {train.epochs} epochs, stopped after "
        f"{train.patience} without a better validation NDCG@20. Leave-one-out; full ranking over all items; the test set was "
        "ranked once, with the weights that validation chose."
    )
    return (
        "\n\n".join(
            [
                "# Which adapter?",
                conclusion(summary),
                table2_markdown(summary).strip(),
                "Mean ± standard deviation over seeds; best bold, second underlined.",
                "![Comparison](figures/comparison.svg)",
                "![Learning curves](figures/learning-curves.svg)",
                "![Cumulative singular values](figures/figure1.svg)",
                "## Data",
                markdown(sizes),
                "## Size and epochs",
                markdown(cost),
                "## Settings",
                settings,
            ]
        )
        + "\n"
    )
