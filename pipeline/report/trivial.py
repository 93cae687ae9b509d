"""The trivial baselines beside the adapters: their rows in Table 2, and the adapters that are below one of them."""

import math
from dataclasses import dataclass, replace

import polars as pl

from pipeline.artifacts import SIDECAR, read_signed
from pipeline.grid.baseline_cells import command, directory_of, read_baselines
from pipeline.grid.baselines import TITLES
from pipeline.params import Params
from pipeline.report.formats import Entry, Table, number
from pipeline.report.significance import SIGNIFICANT, improvement_intervals, sign_flip_p_values
from pipeline.report.titles import title
from pipeline.report.users import rank_metrics
from pipeline.runs import preprocess_command, sequences_directory, spectrum_directory, svd_command

BELOW = "†"


def trivial_rows(params: Params, datasets: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """Rows of the baselines (dataset, adapter, setting, metrics) and the datasets that have none of today's settings.

    Raises UserError if an artifact is damaged.
    """
    wanted = params.evaluate.model_dump(include={"cutoffs", "exclude_history"})
    usable: list[str] = []
    absent: list[str] = []
    for dataset in datasets:
        sidecar = directory_of(dataset) / SIDECAR
        made = read_signed(sidecar, command(dataset)) if sidecar.is_file() else {}
        same = made.get("evaluate") == wanted and made.get("max_history") == params.train.max_history
        sequences = read_signed(sequences_directory(dataset) / SIDECAR, preprocess_command(dataset))
        spectrum = read_signed(spectrum_directory(dataset, params.encoder) / SIDECAR, svd_command(dataset))
        # The users and items of today, and the texts as today's encoder embeds them.
        same = same and (made.get("sequences"), made.get("spectrum")) == (sequences["checksum"], spectrum["checksum"])
        (usable if same else absent).append(dataset)
    return read_baselines(usable), absent


def below(summary: pl.DataFrame, trivial: pl.DataFrame, metric: str) -> pl.DataFrame:
    """Adapters whose mean is below a baseline's: dataset, backbone, adapter, mean, trivial, its value; the best baseline each.

    summary: dataset, backbone, adapter, metric, mean, …, a row per metric.
    """
    means = summary.filter(pl.col("metric") == metric).select("dataset", "backbone", "adapter", "mean")
    return means.join(best_trivial(trivial, metric), on="dataset", maintain_order="left").filter(pl.col("mean") < pl.col("value"))


def best_trivial(trivial: pl.DataFrame, metric: str) -> pl.DataFrame:
    """dataset, trivial (the name of its best baseline by `metric`) and value."""
    if not trivial.height:
        return pl.DataFrame(schema={"dataset": pl.String, "trivial": pl.String, "value": pl.Float64})
    ordered = trivial.sort(metric, descending=True, maintain_order=True).unique("dataset", keep="first", maintain_order=True)
    return ordered.select("dataset", trivial="adapter", value=metric)


def with_trivial(table: Table, summary: pl.DataFrame, trivial: pl.DataFrame, metric: str) -> Table:
    """Table 2 with the rows of the baselines at its foot, and a mark at adapters that are below one of them by `metric`."""
    if not trivial.height:
        return table
    marked = below(summary, trivial, metric)
    blocks = []
    for block in table.blocks:
        if block.pair is None:
            blocks.append(block)
            continue
        dataset, backbone = block.pair
        lower = {title(name) for name in marked.filter(dataset=dataset, backbone=backbone)["adapter"]}
        rows = [[replace(row[0], text=f"{row[0].text} {BELOW}"), *row[1:]] if row[0].text in lower else row for row in block.rows]
        here = trivial.filter(dataset=dataset)
        added = [
            [Entry(TITLES[row["adapter"]]), *(number(row.get(name)) for name in block.header[1:])]
            for row in here.iter_rows(named=True)
        ]
        blocks.append(replace(block, rows=rows, footer=[*block.footer, *added]))
    notes = [f"Without training: {settings_named(trivial)}; their settings are chosen on validation."]
    notes += [f"{BELOW} Below one of them by {metric}."] if marked.height else []
    return replace(table, blocks=blocks, notes=[*table.notes, *notes], data=_with_rows(table.data, summary, trivial))


def _with_rows(data: pl.DataFrame, summary: pl.DataFrame, trivial: pl.DataFrame) -> pl.DataFrame:
    """The table's numbers, and after those of each dataset's blocks the baselines' under the backbone `none`."""
    names = summary["metric"].unique(maintain_order=True).to_list()
    long = trivial.unpivot(on=names, index=["dataset", "adapter"], variable_name="metric", value_name="mean")
    return pl.concat([data, long.with_columns(backbone=pl.lit("none"))], how="diagonal_relaxed")


def settings_named(trivial: pl.DataFrame) -> str:
    """The baselines by name, each with the settings that validation chose."""
    said = []
    for name, text in TITLES.items():
        chosen = trivial.filter(pl.col("adapter") == name)["setting"].cast(pl.String).drop_nulls().unique(maintain_order=True)
        settings = " or ".join(setting for setting in chosen if setting)
        said += [f"{text} ({settings})" if settings else text] if (trivial["adapter"] == name).any() else []
    return ", ".join(said)


def sentences(summary: pl.DataFrame, trivial: pl.DataFrame, metric: str, configured: str = "") -> list[str]:
    """What the verdict has to say of the baselines, a sentence per dataset and backbone. configured: how the adapters were."""
    found = []
    lower = below(summary, trivial, metric)
    best = {row["dataset"]: row for row in best_trivial(trivial, metric).iter_rows(named=True)}
    for dataset, backbone in summary.select("dataset", "backbone").unique(maintain_order=True).rows():
        if dataset not in best:
            continue
        here = (pl.col("dataset") == dataset) & (pl.col("backbone") == backbone)
        names = [title(name) for name in lower.filter(here)["adapter"]]
        every = summary.filter(here)["adapter"].n_unique()
        baseline = (
            f"{TITLES[best[dataset]['trivial']]}, the best ranking without training ({metric} {best[dataset]['value']:.4f})"
        )
        where = f"{title(dataset)}, {title(backbone)}{f', {configured}' if configured else ''}: "
        if not names:
            found.append(f"{where}every adapter is above {baseline}.")
        elif len(names) == every:
            found.append(f"{where}NO adapter beats {baseline}; ship none of them before one does.")
        else:
            found.append(f"{where}below {baseline}: {', '.join(names)}.")
    return found


def missing_baselines(datasets: list[str]) -> list[str]:
    """The sentence that names datasets without trivial baselines, if there are any."""
    makes = " ".join(f"grid/dvc.yaml:baselines@{dataset}" for dataset in datasets)
    named = ", ".join(map(title, datasets))
    return [f"Without the trivial baselines of {named}; `dvc repro {makes}` ranks them."] if datasets else []


@dataclass(frozen=True)
class Beaten:
    """The leader against the best trivial baseline: its name and mean, the leader's improvement, interval and p."""

    name: str
    mean: float
    improvement: float
    low: float
    high: float
    p: float

    @property
    def surely(self) -> bool:
        return self.improvement > 0 and self.p < SIGNIFICANT


def against_trivial(gains: pl.DataFrame, trivial: pl.DataFrame, metric: str, column: str, cutoff: int) -> Beaten | None:
    """The leader's NDCG against that of the best baseline, user by user. None without baselines.

    gains: user_id and gain, sorted by user.
    """
    best = best_trivial(trivial, metric)
    if not best.height:
        return None
    name, mean = best["trivial"][0], best["value"][0]
    ranks = pl.read_parquet(directory_of(best["dataset"][0]) / "ranks.parquet", glob=False).filter(pl.col("adapter") == name)
    theirs = ranks.select("user_id", other=rank_metrics(column, cutoff)[0])
    both = gains.join(theirs, on="user_id", maintain_order="left")
    ours, other = both["gain"].to_numpy(), both["other"].to_numpy()
    low, high = improvement_intervals(ours, other[:, None])[0]
    p = sign_flip_p_values((ours - other)[:, None])[0]
    improvement = ours.mean() / other.mean() - 1 if other.mean() > 0 else math.inf
    return Beaten(TITLES[name], float(mean), float(improvement), float(low), float(high), float(p))
