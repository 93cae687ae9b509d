"""The grid's report: words, tables and figures computed from the cells, one structure for Markdown and HTML."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.artifacts import SIDECAR, fingerprint, read_json
from pipeline.grid.cells import OURS, STAGES, Cell
from pipeline.params import Params
from pipeline.report.formats import ABSENT, Block, Entry, Table, count, markdown, number
from pipeline.report.results import BLOCK, ResultSet, average, improvements
from pipeline.report.tables import SIGNIFICANT, title
from pipeline.runs import sequences_directory, spectrum_directory

HOW_TO = {  # a table without cells: what asks for them
    "table3": "Table 3, SpecTran's variants: none are listed; `-S 'grid.ablations.datasets=[{dataset}]'` lists them.",
    "table4": "Table 4, other dims: none are listed; `-S 'grid.dimensions.datasets=[{dataset}]'` lists them.",
}
POPULARITY = (
    "By how popular the test item is, in training interactions. Head: the most popular items, which together have a third of all "
    "training interactions; mid: the next third; tail: the rest, and items without any."
)
HISTORY = "By the number of the user's training items, cut at its quartiles."


@dataclass(frozen=True)
class Figure:
    """A file of metrics/figures, without its ending, and what it shows."""

    name: str
    caption: str


@dataclass(frozen=True)
class Folded:
    """A table that is closed at first."""

    summary: str
    table: Table


Part = str | list[str] | Table | Figure | Folded  # a paragraph, a list, …


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    parts: list[Part]


def headline_metric(summary: pl.DataFrame) -> str:
    """NDCG at the largest cutoff: what validation chooses by, at the default cutoffs."""
    names = [name for name in summary["metric"].unique(maintain_order=True) if name.startswith("NDCG")]
    return max(names, key=lambda name: int(name.partition("@")[2]))


# ------------------------------------------------------------------------------------------------------------------ conclusions


def _how(loss: str | None) -> str:
    return f"tuned, with the {title(loss)}" if loss else "as params.yaml sets every method"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def verdict(summary: pl.DataFrame, comparisons: pl.DataFrame, loss: str | None = None) -> str:
    """The answer in a few sentences: who is best how often, by how much, and whether other users would say the same."""
    if summary["adapter"].n_unique() == 1:
        return f"Only {title(summary['adapter'][0])} was run: there is nothing to compare it with."
    metric = headline_metric(summary)
    blocks = summary.filter(pl.col("metric") == metric).partition_by(BLOCK, maintain_order=True)
    places = f"{len(blocks)} pair{'s' if len(blocks) > 1 else ''} of dataset and backbone"
    improvement = improvements(summary)
    if not improvement.height:
        best = Counter(block.sort("mean", descending=True, maintain_order=True)["adapter"][0] for block in blocks)
        often = ", ".join(f"{title(adapter)} in {times}" for adapter, times in best.most_common())
        return f"The best {metric} of {places} has: {often}."
    headline = improvement.filter(pl.col("metric") == metric)
    wins = headline.filter(pl.col("improvement") > 0).height
    start = f"{_capital(_how(loss))}, SpecTran" if loss else "SpecTran"
    if headline.height == 1:
        has = "has" if wins else "does not have"
        leads = f"{has} the best {metric}"
    else:
        leads = f"has the best {metric} in {wins} of {headline.height} pairs of dataset and backbone"
    gain = f"over the best other adapter it gains {100 * average(improvement):+.2f} % on average over all metrics"
    paper = improvements(summary, "paper")
    if paper.height and not loss:
        gain += f"; in the paper, with the same datasets, backbones and adapters, {100 * average(paper):+.2f} %"
    sentences = [f"{start} {leads}; {gain}."]
    if comparisons.height and headline.height > 1:  # one pair: the sentence on it has its p-value
        against = headline.join(
            comparisons, left_on=[*BLOCK, "metric", "best"], right_on=[*BLOCK, "metric", "other"], how="inner"
        )
        sure = pl.col("p_holm") < SIGNIFICANT
        better, worse = (against.filter(sure & side).height for side in (pl.col("difference") > 0, pl.col("difference") < 0))
        sentences.append(
            f"The difference to that adapter in {metric} is beyond chance in the users (permutation test, Holm-adjusted p below "
            f"{SIGNIFICANT}) in its favour in {better}, against it in {worse}; in {against.height - better - worse} it may be "
            "chance."
        )
    return " ".join(sentences)


def with_a_stronger_loss(tuned: list[ResultSet]) -> str:
    """Whether text, and SpecTran, still help where the whole catalogue competes; nothing where either loss is missing."""
    found = {result_set.loss: result_set.summary for result_set in tuned}
    if not {"info_nce", "cross_entropy"} <= set(found):
        return ""
    metric = headline_metric(found["info_nce"])
    shared = set.intersection(*(set(found[loss]["adapter"]) for loss in ("info_nce", "cross_entropy")))
    means = {
        loss: found[loss]
        .filter((pl.col("metric") == metric) & pl.col("adapter").is_in(shared))
        .pivot(on="adapter", index=BLOCK, values="mean")
        for loss in ("info_nce", "cross_entropy")
    }
    both = means["info_nce"].join(means["cross_entropy"], on=BLOCK, how="inner", suffix="_full").drop_nulls()
    if not {"base", OURS} <= shared or not both.height:
        return ""
    others = sorted(shared - {"base", OURS})

    def mean(name: str, full: bool) -> float:
        return float(both[f"{name}_full" if full else name].to_numpy().mean())

    def gain(name: str, full: bool) -> str:
        return f"{100 * (mean(name, full) / mean('base', full) - 1):+.1f} %"

    pairs = f"{both.height} pair{'s' if both.height > 1 else ''}"
    sentences = [
        f"Against the whole catalogue instead of drawn negatives, tuned Base goes from an {metric} of {mean('base', False):.4f} "
        f"to {mean('base', True):.4f} (average over {pairs}). SpecTran's gain over it is {gain(OURS, False)} with negatives, "
        f"{gain(OURS, True)} with the whole catalogue."
    ]
    if others:
        helped = sum(mean(name, True) > mean("base", True) for name in others)
        best = max(others, key=lambda name: mean(name, True))
        sentences.append(
            f"Of the {len(others)} other adapters {helped} {'is' if helped == 1 else 'are'} above Base there too; the best, "
            f"{title(best)}, gains {gain(best, True)}."
        )
    return " ".join(sentences)


def budget(params: Params) -> str:
    """What every method was given to be tuned."""
    tuning = params.grid.tuning
    return (
        f"Every method tuned by itself on validation, with the same budget: {tuning.trials} trials (its settings in params.yaml "
        f"the first of them), each a full run under seed {tuning.seed}; the default and the best two others also under seed "
        f"{tuning.seed + 1}, and the best mean is chosen. "
        "grid/space.yaml says what could be chosen, grid/tuned/ what was."
    )


def conclusions(summary: pl.DataFrame, comparisons: pl.DataFrame) -> list[str]:
    """One sentence per (dataset, backbone): which adapter is best, by how much, whether seeds agree, and users."""
    sentences = []
    for block in summary.partition_by(BLOCK, maintain_order=True):
        metric = headline_metric(block)
        ranked = block.filter(pl.col("metric") == metric).sort("mean", descending=True, maintain_order=True)
        first = ranked.row(0, named=True)
        where = f"{title(first['dataset'])}, {title(first['backbone'])}"
        leads = "the best" if ranked.height > 1 else "an"
        sentence = f"{where}: {title(first['adapter'])} has {leads} {metric}{' of' if leads == 'an' else ','} {first['mean']:.4f}"
        if ranked.height > 1:
            second = ranked.row(1, named=True)
            gap = first["mean"] - second["mean"]
            spread = max(first["std"] or 0.0, second["std"] or 0.0)
            above = f"{100 * gap / second['mean']:.1f} % above" if second["mean"] else "above"
            sentence += f", {above} {title(second['adapter'])}"
            if first["seeds"] < 2:
                sentence += " (one seed: no spread is known)"
            elif gap <= spread:
                sentence += f", which is within the spread over seeds ({spread:.4f}): no winner"
            else:
                sentence += f", a gap of {gap / spread:.1f} standard deviations over seeds" if spread else ""
            sentence += _over_users(first, second, comparisons)
        sentences.append(f"{sentence}.")
    if OURS in summary["adapter"] and summary["adapter"].n_unique() > 1:
        worse = improvements(summary).filter(pl.col("improvement") < 0).unique(BLOCK, maintain_order=True)
        lost = [f"{title(row['dataset'])}/{title(row['backbone'])}" for row in worse.iter_rows(named=True)]
        if lost:
            sentences.append(f"SpecTran is beaten by another adapter in at least one metric on {', '.join(lost)}.")
    return sentences


def best_at_first(rows: pl.DataFrame) -> str:
    """The runs that never got above their first epoch: patience may have ended them before they learned. Nothing without any."""
    ended = rows.filter((pl.col("best_epoch") == 1) & (pl.col("epochs") > 1))
    if not ended.height:
        return ""
    names = [
        f"{_run_name(part.row(0, named=True))}, dim {part['dim'][0]} (seed{'s' if part.height > 1 else ''} "
        f"{', '.join(map(str, part['seed']))})"
        for part in ended.partition_by("dataset", "backbone", "adapter", "over", "variant", "loss", "dim", maintain_order=True)
    ]
    return (
        f"Of {rows.height} runs {ended.height} ended without a better validation than the first epoch's: {'; '.join(names)}. "
        "`train.patience` may have ended them before they learned, and their rows may say more of it than of the adapter."
    )


def _run_name(row: dict) -> str:
    """A run but for its dim and seed."""
    name = f"{title(row['dataset'])}, {title(row['backbone'])}, {title(row['adapter'])}"
    if row["over"] == "variants":
        name += f", {title(row['variant'])}"
    if row["over"] == "tuned":
        name += f", {_how(row['loss'])}"
    return name


def _over_users(first: dict, second: dict, comparisons: pl.DataFrame) -> str:
    """What the test over users says of the two leaders, where SpecTran is one of them."""
    other = {first["adapter"], second["adapter"]} - {OURS}
    if not comparisons.height or len(other) != 1:
        return ""
    key = {name: first[name] for name in (*BLOCK, "metric")} | {"other": other.pop()}
    found = comparisons.filter(pl.all_horizontal(pl.col(name) == value for name, value in key.items()))
    if not found.height:
        return ""
    row = found.row(0, named=True)
    chance = "" if row["p_holm"] < SIGNIFICANT else ", which may be chance"
    return f"; over users p = {row['p_holm']:.4f} (Holm){chance}"


# ------------------------------------------------------------------------------------------------------------------- the report


def sections(
    params: Params,
    rows: pl.DataFrame,
    result_sets: list[ResultSet],
    tables: dict[str, Table],
    drawn: set[str],
    missing: list[Cell],
) -> list[Section]:
    """The report's sections. `rows` are all runs; `drawn` names the figures there are; `missing` the cells there are not."""
    first, *tuned = result_sets
    metric = headline_metric(first.summary)
    plain = rows.filter(pl.col("over") == "seeds")

    def part(heading: str, *names: str, figure: tuple[str, str] = ("", ""), words: str = "") -> list[Section]:
        """A section with its words, the tables that there are and the figure, if it was drawn; none where there is neither."""
        found: list[Part] = [tables[name] for name in names if name in tables]
        found += [Figure(*figure)] if figure[0] in drawn else []
        return [Section(heading, [words, *found] if words else found)] if found else []

    opening: list[Part] = []
    for result_set in result_sets:
        words = verdict(result_set.summary, result_set.comparisons, result_set.loss)
        if result_set is first and (stronger := with_a_stronger_loss(tuned)):
            words += f" {stronger}"
        opening += [words, conclusions(result_set.summary, result_set.comparisons)]
    opening += [words] if (words := best_at_first(rows)) else []
    if missing:
        names = ", ".join(cell.name for cell in missing)
        opening.append(f"Not there: {names}. `dvc repro -k grid/dvc.yaml` trains what is missing; everything here leaves it out.")
    unlisted = [how.format(dataset=plain["dataset"][0]) for name, how in HOW_TO.items() if name not in tables]
    spectra = "Share of the leading directions in the text's part of the item table (covariance), run by run."
    return [
        Section("Which adapter?", opening),
        *part("Table 2: adapters", "table2", figure=("comparison", f"Test {metric}, mean and standard deviation over seeds.")),
        *part("Significance", "significance"),
        *(
            section
            for result_set in tuned
            for section in part(
                f"Table 2 again, {_how(result_set.loss)}",
                *(result_set.named(name) for name in ("table2", "significance")),
                words=budget(params),
            )
        ),
        *part("Table 3: SpecTran's variants", "table3"),
        *part("Table 4: dimensions", "table4", figure=("dimensions", f"Test {metric} against dim.")),
        *part("Table 5: cost", "table5", figure=("cost", f"Test {metric} against seconds of training, both with spread.")),
        *part("Table 6: SpecTran's weights", "table6"),
        *part("Figure 1: spectra", figure=("figure1", spectra)),
        *part(
            "Popular and rare items", figure=("popularity", f"Test {metric} by popularity of the test item."), words=POPULARITY
        ),
        *part("Short and long histories", figure=("history", f"Test {metric} by number of training items."), words=HISTORY),
        *part("Learning curves", figure=("learning-curves", "Validation NDCG@20 by epoch, run by run.")),
        *part("Table 1: datasets", "table1"),
        Section("Settings", [settings(params, plain), *unlisted]),
        Section("Provenance", [_data(params, plain), Folded(f"{rows.height} runs", _runs(rows))]),
    ]


def settings(params: Params, rows: pl.DataFrame) -> str:
    """What every method was given."""
    train = params.train
    against = "full softmax," if train.loss == "cross_entropy" else f"{train.negatives} negatives a target,"
    seeds = rows["seed"].n_unique()
    optimiser = "Adam" if train.optimiser == "adam" else "lazy Adam for rows of items (sparse_adam), Adam for the rest"
    ranked = "all items that the user has not had" if train.exclude_history else "all items"
    return (
        f"Encoder {rows['encoder'][0]}, dim {rows['dim'][0]}, {seeds} seed{'s' if seeds > 1 else ''}. One budget for every "
        f"method: {optimiser}, learning rate {train.learning_rate:g}, weight decay {train.weight_decay:g}, batches of "
        f"{train.batch_size} users, {against} temperature {train.temperature:g}, at most {train.epochs} epochs, stopped after "
        f"{train.patience} without a better validation NDCG@20. Leave-one-out; full ranking over {ranked}; the test set was "
        "ranked once, with the weights that validation chose."
    )


def _data(params: Params, rows: pl.DataFrame) -> Table:
    """Where each dataset and its embeddings came from."""
    found = []
    for dataset, encoder in rows.select("dataset", "encoder").unique(maintain_order=True).rows():
        sequences = read_json(sequences_directory(dataset) / SIDECAR, f"the preprocess stage of {dataset}")
        spectrum = read_json(spectrum_directory(dataset, encoder) / SIDECAR, "the svd stage")
        made = spectrum.get("embeddings", {}).get("encoder", {})
        source = params.sources[dataset]
        found.append(
            {
                "Dataset": title(dataset),
                "Source": getattr(source, "name", source.kind),
                "Sequences": fingerprint(sequences)[:12],
                "Encoder": made.get("model", encoder),
                "Revision": made.get("revision"),
                "Rank": spectrum.get("plain", {}).get("rank"),
                "Spectrum": fingerprint(spectrum)[:12],
            }
        )
    lines = [[count(v) if isinstance(v, int) else Entry(v) if v else ABSENT for v in row.values()] for row in found]
    note = "Sequences and Spectrum are checksums of the artifacts' sidecars, which hold those of their files and sources."
    return Table("data", "Data", [Block("", list(found[0]), lines)], [note], pl.DataFrame(found, infer_schema_length=None))


def _runs(rows: pl.DataFrame) -> Table:
    """Every run and its fingerprint."""
    header = ["Run", "Dim", "Seed", "Fingerprint", "Device", "Threads", "Training, s"]
    lines, found = [], []
    for row in rows.iter_rows(named=True):
        config = read_json(Path(row["run_directory"]) / "config.json", f"`dvc repro grid/dvc.yaml`, as {STAGES[row['over']]}")
        name = _run_name(row)
        lines.append(
            [
                *(Entry(name), number(row["dim"], "d"), number(row["seed"], "d"), Entry(config["fingerprint"][:12])),
                *(Entry(str(row["device"])), number(row["threads"], "d"), number(row["training_seconds"], ".1f")),
            ]
        )
        found.append({"run": name, "fingerprint": config["fingerprint"]})
    note = "A fingerprint covers the run's settings, the checksums of its inputs and the code that decides its numbers."
    return Table("provenance", "Runs", [Block("", header, lines)], [note], pl.DataFrame(found))


def report_markdown(made: list[Section]) -> str:
    """As GitHub shows it, beside metrics/figures/; folded tables are left to the HTML."""
    write: dict[type, Callable] = {
        str: lambda text: text,
        list: lambda sentences: "\n".join(f"- {sentence}" for sentence in sentences),
        Table: lambda table: markdown(table).strip(),
        Figure: lambda figure: f"![{figure.caption}](figures/{figure.name}.svg)",
        Folded: lambda folded: f"{folded.summary}: report.html has the list.",
    }
    parts = []
    for level, section in enumerate(made):
        parts += [f"{'##'[: 1 + bool(level)]} {section.heading}", *(write[type(part)](part) for part in section.parts)]
    return "\n\n".join(parts) + "\n"
