"""The grid's report: words, tables and figures computed from the cells, one structure for Markdown and HTML."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.artifacts import SIDECAR, fingerprint, read_json
from pipeline.grid.cells import KEYS, STAGES, Cell
from pipeline.grid.tuning import Tuning
from pipeline.params import Params
from pipeline.report.formats import ABSENT, Block, Entry, Table, count, markdown, markdown_text, number
from pipeline.report.results import BLOCK, ResultSet, unusable_runs
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


def _listed(names: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _level(row: dict) -> bool:
    """Whether chance, in the users or in training, may have made the leader's difference to another adapter."""
    return row["p_holm"] >= SIGNIFICANT or _within_spread(row)


def _within_spread(row: dict) -> bool:
    """Whether the difference is no larger than the standard deviation over seeds of either."""
    return row["difference"] <= max(row["std"] or 0.0, row["std_other"] or 0.0)


def verdict(summary: pl.DataFrame, compared: pl.DataFrame, unusable: pl.DataFrame, loss: str | None = None) -> str:
    """Which adapter is best, or which are level, in one paragraph. `compared`: what `results.compare` found for `summary`.

    An adapter is called best only where the test over users, adjusted for all comparisons with it, tells it from every other, and
    the difference exceeds the spread over seeds. Adapters with unusable runs take no part.
    """
    adapters = summary["adapter"].unique(maintain_order=True).to_list()
    if len(adapters) == 1:
        alone = f"Only {title(adapters[0])} was run: there is nothing to compare it with."
        return " ".join([alone, *_about_unusable(unusable)])
    pairs = summary.n_unique(BLOCK)
    start = f"{_capital(_how(loss))}: " if loss else ""
    if not compared.height:
        return f"{start}No conclusion: no two adapters were run on each of the {pairs} pairs of dataset and backbone."
    metric = headline_metric(summary)
    rows = compared.filter(pl.col("metric") == metric).sort("mean_other", descending=True, maintain_order=True)
    leader, excluded = rows["leader"][0], set(unusable["adapter"])
    others = [row for row in rows.iter_rows(named=True) if row["other"] not in excluded]
    absent = [title(name) for name in adapters if name != leader and name not in rows["other"]]
    about = _about_unusable(unusable)
    about += [f"Not run on every pair, so not compared here: {_listed(absent)}."] if absent else []
    if leader in excluded or not others:
        return " ".join(
            [f"{start}No conclusion: fewer than two adapters have runs that learned and ended by themselves.", *about]
        )
    second = others[0]
    level = [title(row["other"]) for row in others if _level(row)]
    below = [title(row["other"]) for row in others if not _level(row)]
    over = f", averaged over {pairs} pairs of dataset and backbone" if pairs > 1 else ""
    gain = f"{100 * second['improvement']:.1f} % above" if second["improvement"] is not None else "above"
    interval = (
        f"95 % interval {100 * second['low']:+.1f} to {100 * second['high']:+.1f} %, " if math.isfinite(second["low"]) else ""
    )
    seeds = f"{second['seeds']} seeds" if second["seeds"] > 1 else "one seed, so chance in training is not known"
    figures = (
        f"{metric} {second['mean']:.4f}{over}, {gain} the runner-up, {title(second['other'])}: {interval}"
        f"p = {second['p_holm']:.4f} over users, Holm-adjusted; {seeds}"
    )
    if not level:
        sentences = [f"{start}{title(leader)} is best ({figures})."]
    else:
        sentences = [f"{start}Level: {', '.join([title(leader), *level])} ({title(leader)} leads, {figures})."]
        if _within_spread(second) and second["p_holm"] < SIGNIFICANT:
            spread = max(second["std"] or 0.0, second["std_other"] or 0.0)
            sentences.append(
                f"The runner-up's difference, {second['difference']:.4f}, is within the spread over seeds, {spread:.4f}."
            )
        sentences += [f"Beyond chance below {title(leader)}: {_listed(below)}."] if below else []
    return " ".join([*sentences, *about])


def _about_unusable(unusable: pl.DataFrame) -> list[str]:
    """The sentence that names the adapters of which nothing is concluded; none without any."""
    reasons = {
        "not finished": "the last epoch ended runs that might have got better",
        "never learned": "runs were best at their first epoch",
    }
    parts = []
    for why, reason in reasons.items():
        names = unusable.filter(pl.col("why") == why)["adapter"].unique(maintain_order=True).to_list()
        parts += [f"{_listed([title(name) for name in names])} ({reason})"] if names else []
    return [f"Nothing is concluded of {'; '.join(parts)}."] if parts else []


def with_a_stronger_loss(tuned: list[ResultSet]) -> str:
    """Whether text still helps where the whole catalogue competes; nothing where either loss, or Base, is missing."""
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
    others = sorted(shared - {"base"})
    if "base" not in shared or not others or not both.height:
        return ""

    def mean(name: str, full: bool) -> float:
        return float(both[f"{name}_full" if full else name].to_numpy().mean())

    def highest(full: bool) -> str:
        name = max(others, key=lambda name: mean(name, full))
        return f"{title(name)}, {100 * (mean(name, full) / mean('base', full) - 1):+.1f} %"

    pairs = f"{both.height} pair{'s' if both.height > 1 else ''}"
    return (
        f"Against the whole catalogue instead of drawn negatives, tuned Base goes from an {metric} of {mean('base', False):.4f} "
        f"to {mean('base', True):.4f} (average over {pairs}). The highest mean of the adapters that use text, beside Base: "
        f"{highest(False)} with negatives; {highest(True)} with the whole catalogue."
    )


def budget(params: Params, rows: pl.DataFrame) -> str:
    """What every method was given to be tuned. `rows`: the runs of the tuned cells under one loss.

    It is said of cells whose runs have the settings that a valid choice in grid/tuned gives; others are named.
    """
    trials, unknown = set(), []
    for cell in rows.partition_by(KEYS, maintain_order=True):
        first = cell.row(0, named=True)
        tuning = Tuning(params, *(first[key] for key in (*KEYS, "loss")))
        made_by_choice = tuning.has_choice and all(
            read_json(Path(row["run_directory"]) / "config.json", tuning.command).get("settings")
            == tuning.run(tuning.chosen, row["seed"]).settings
            for row in cell.iter_rows(named=True)
        )
        if made_by_choice:
            trials.add(tuning.n_trials)
        else:
            unknown.append(tuning.name)
    sentences = []
    if trials:
        given = (
            f"{min(trials)} to {max(trials)} trials, as many as there are settings,"
            if len(trials) > 1
            else f"{max(trials)} trials"
        )
        seed = params.grid.tuning.seed
        sentences.append(
            f"Every {'other ' if unknown else ''}method tuned by itself on validation, with the same budget: {given} (its "
            "settings in params.yaml the first of them), each a full run under "
            f"seed {seed}; the default and the best two others also under seed {seed + 1}, and the best mean is chosen. "
            "grid/space.yaml says what could be chosen, grid/tuned/ what was."
        )
    if unknown:
        sentences.append(
            f"Tuned with another budget, space, setting or data than params.yaml and grid/space.yaml give: {', '.join(unknown)}; "
            "`python -m stages.grid` tunes again."
        )
    return " ".join(sentences)


def verdicts(result_set: ResultSet) -> list[Part]:
    """The verdict over all pairs of dataset and backbone, and where there are several, one for each."""
    overall = verdict(result_set.summary, result_set.overall, result_set.unusable, result_set.loss)
    blocks = result_set.summary.partition_by(BLOCK, maintain_order=True)
    lines = []
    for block in blocks if len(blocks) > 1 else []:
        compared, unusable = (
            part.join(block, on=BLOCK, how="semi") if part.height else part
            for part in (result_set.comparisons, result_set.unusable)
        )
        lines.append(f"{title(block['dataset'][0])}, {title(block['backbone'][0])}: {verdict(block, compared, unusable)}")
    return [overall, lines] if lines else [overall]


def unusable_named(rows: pl.DataFrame, params: Params) -> str:
    """The runs from which nothing is concluded, by name and reason. Empty without any."""
    unusable = unusable_runs(rows, params.train)
    if not unusable.height:
        return ""
    reasons = {
        "never learned": "ended without a better validation than the first epoch's; `train.patience` may have ended them before "
        "they learned",
        "not finished": f"reached epoch {params.train.epochs}, the last, with their best less than {params.train.patience} "
        "epochs before; `train.epochs` may have ended them before they were done",
    }
    sentences = []
    for why, reason in reasons.items():
        ended = unusable.filter(pl.col("why") == why)
        names = [
            f"{_run_name(part.row(0, named=True))}, dim {part['dim'][0]} (seed{'s' if part.height > 1 else ''} "
            f"{', '.join(map(str, part['seed']))})"
            for part in ended.partition_by(
                "dataset", "backbone", "adapter", "over", "variant", "loss", "dim", maintain_order=True
            )
        ]
        sentences += [f"Of {rows.height} runs {ended.height} {reason}: {'; '.join(names)}."] if names else []
    return " ".join([*sentences, "Their rows may say more of the budget than of the adapter."])


def _run_name(row: dict) -> str:
    """A run but for its dim and seed."""
    name = f"{title(row['dataset'])}, {title(row['backbone'])}, {title(row['adapter'])}"
    if row["over"] == "variants":
        name += f", {title(row['variant'])}"
    if row["over"] == "tuned":
        name += f", {_how(row['loss'])}"
    return name


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
        opening += verdicts(result_set)
    opening += [stronger] if (stronger := with_a_stronger_loss(tuned)) else []
    opening += [named] if (named := unusable_named(rows, params)) else []
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
                words=budget(params, rows.filter((pl.col("over") == "tuned") & (pl.col("loss") == result_set.loss))),
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
    ranked = "all items that the user has not had" if params.evaluate.exclude_history else "all items"
    ranked += f", by {'cosine' if params.evaluate.similarity == 'cosine' else 'dot product'}"
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
        str: markdown_text,
        list: lambda sentences: "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences),
        Table: lambda table: markdown(table).strip(),
        Figure: lambda figure: f"![{markdown_text(figure.caption)}](figures/{figure.name}.svg)",
        Folded: lambda folded: f"{markdown_text(folded.summary)}: report.html has the list.",
    }
    parts = []
    for level, section in enumerate(made):
        heading = f"{'##'[: 1 + bool(level)]} {markdown_text(section.heading)}"
        parts += [heading, *(write[type(part)](part) for part in section.parts)]
    return "\n\n".join(parts) + "\n"
