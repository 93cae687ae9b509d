"""The sections of the grid's report: paragraphs, tables and figures, one structure for Markdown and HTML."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from common.words import plural
from pipeline.artifacts import SIDECAR, fingerprint, read_json
from pipeline.grid.cells import STAGES, Cell
from pipeline.params import Params
from pipeline.report.conclusions import (
    budget,
    configuration,
    run_name,
    unusable_sentences,
    verdicts,
    with_full_softmax,
)
from pipeline.report.dropped import dropped_parts
from pipeline.report.formats import ABSENT, Block, Entry, Table, count, markdown, markdown_text, number
from pipeline.report.header import about
from pipeline.report.measured import Measured
from pipeline.report.ties import ties_of
from pipeline.report.titles import title
from pipeline.runs import sequences_directory, spectrum_directory
from pipeline.training.sequences import split_of

HOW_TO_ADD = {  # table without cells -> the setting that adds its cells
    "table3": "Table 3, SpecTran's variants, has no cells; `-S 'grid.ablations.datasets=[{dataset}]'` adds them.",
    "table4": "Table 4, other dims, has no cells; `-S 'grid.dimensions.datasets=[{dataset}]'` adds them.",
}
POPULARITY = (
    "Users are grouped by the popularity of their test item, in training interactions. Head: the most popular items, which "
    "together have a third of all training interactions; mid: the next third; tail: the rest, including items without any."
)
HOLLOW = "A hollow marker: a run of this adapter was cut short or never learned."
FOREST = f"Relative gain over Base, with 95 % bootstrap intervals over users. {HOLLOW}"
MEAN_RANKS = (
    "Adapters ranked on each pair of dataset and backbone, averaged over pairs (Demšar 2006). Adapters left of the dotted line "
    "are within Nemenyi's critical difference (5 %) of the first."
)
GROUPS = "Relative gain over Base, with 95 % intervals over users for SpecTran and the leader."
SPECTRA = (
    "Cumulative share of variance in the leading directions of the text's part of the item table, or of the whole table where "
    "there is no such part, as in Base and LLMInit. One line per run."
)
ATTENTION = "Absolute values of W, averaged in tiles: the stronger the colour, the larger."
HISTORY = "Users are grouped by their number of training items, divided at its quartiles."


@dataclass(frozen=True)
class Figure:
    """A figure: the name of its file in metrics/figures, without ending, what it shows, and how to read it."""

    name: str
    finding: str
    caption: str = ""

    @property
    def text(self) -> str:
        """What stands below the figure."""
        return f"{self.finding} {self.caption}".strip()


@dataclass(frozen=True)
class Folded:
    """A table that the HTML report shows only after a click on its summary."""

    summary: str
    table: Table


Part = str | list[str] | Table | Figure | Folded  # a paragraph, a bullet list, a table, …


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it. about: names and values, before the parts."""

    heading: str
    parts: list[Part]
    about: list[tuple[str, str]] = field(default_factory=list)


def sections(
    params: Params,
    measured: Measured,
    tables: dict[str, Table],
    shown: dict[str, str],
    missing: list[Cell],
    notes: list[str],
    changes: list[str],
) -> list[Section]:
    """Return the report's sections.

    tables: by name. shown: by name of each figure that exists, what it shows. missing: cells that are listed but not in the
    report. notes: sentences that compare the adapters with rankings without training. changes: what would change the verdict.
    """
    first, *tuned = measured.result_sets
    rows, default, metric = measured.rows, measured.default, measured.metric

    def picture(name: str, caption: str) -> Figure | None:
        return Figure(name, shown[name], caption) if name in shown else None

    def part(heading: str, *names: str, figure: tuple[str, str] = ("", ""), text: str = "") -> list[Section]:
        """Return a section with the text, the named tables and the figure, as far as they exist; [] without table and figure."""
        parts: list[Part] = [tables[name] for name in names if name in tables]
        parts += [drawing] if (drawing := picture(*figure)) else []
        return [Section(heading, [text, *parts] if text else parts)] if parts else []

    opening: list[Part] = [*verdicts(first, alone=not tuned)]
    opening += [forest] if (forest := picture("forest", FOREST)) else []
    opening += [notes]
    for result_set in tuned:
        opening += verdicts(result_set, alone=False)
    opening += [softmax] if (softmax := with_full_softmax(tuned)) else []
    opening += [unusable] if (unusable := unusable_sentences(measured.unusable, rows.height, params.train)) else []
    if missing:
        names = ", ".join(cell.name for cell in missing)
        opening.append(f"Missing cells, left out of this report: {names}. `python -m stages.grid` trains them.")
    datasets = default["dataset"].unique(maintain_order=True).to_list()
    ties = [found for name in datasets if (found := ties_of(name, title(name)))]
    opening += [found.text for found in ties if found.learnable]
    unlisted = [how.format(dataset=default["dataset"][0]) for name, how in HOW_TO_ADD.items() if name not in tables]
    return [
        Section("Which adapter?", opening, about(default)),
        *part("Leaderboard", "leaderboard"),
        *([Section("What would change the verdict", [changes])] if changes else []),
        *part("Over all pairs", figure=("mean-ranks", MEAN_RANKS)),
        *part(
            "What tuning changes",
            figure=("tuning", f"Test {metric} of each adapter, by how its settings were chosen. {HOLLOW}"),
        ),
        *part("Table 1: datasets", "table1", text=" ".join(found.text for found in ties)),
        *part("Table 2: adapters", "table2", figure=("comparison", f"Test {metric}, the highest first. {HOLLOW}")),
        *part("Significance", "significance"),
        *(
            section
            for result_set in tuned
            for section in part(
                f"Table 2, {configuration(result_set.loss)}",
                *(result_set.file_name(name) for name in ("table2", "significance")),
                text=budget(params, rows.filter((pl.col("over") == "tuned") & (pl.col("loss") == result_set.loss))),
            )
        ),
        *part("Table 3: SpecTran's variants", "table3", "table3-significance"),
        *part("Table 4: dimensions", "table4", figure=("dimensions", f"Test {metric} against dim. {HOLLOW}")),
        *part("Table 5: cost", "table5", figure=("cost", f"Test {metric} against seconds of training.")),
        *part("Table 6: SpecTran's weights", "table6", figure=("attention", ATTENTION)),
        *part("Beyond accuracy", "beyond"),
        *part("Figure 1: spectra", figure=("figure1", SPECTRA)),
        *part("Popular and rare items", figure=("popularity", GROUPS), text=POPULARITY),
        *part("Items held out of training", "held-out"),
        *part("Short and long histories", figure=("history", GROUPS), text=HISTORY),
        *part("Learning curves", figure=("learning-curves", "Validation NDCG@20 by epoch, one line per run.")),
        *([Section("What was dropped", dropped)] if (dropped := dropped_parts(datasets)) else []),
        Section("Settings", [settings(params, default, bool(tuned)), *unlisted]),
        Section("Provenance", [_data_table(params, default), Folded(f"{rows.height} runs", _run_table(rows))]),
    ]


def settings(params: Params, rows: pl.DataFrame, tuned: bool = False) -> str:
    """Return a paragraph with the settings that all methods share. rows: of Table 2. tuned: whether there are tuned runs too."""
    train = params.train
    against = "full softmax," if train.loss == "cross_entropy" else f"{train.negatives} negatives a target,"
    seeds = rows["seed"].n_unique()
    optimiser = "Adam" if train.optimiser == "adam" else "SparseAdam for item rows (sparse_adam), Adam for the rest"
    ranked = "all items outside the user's history" if params.evaluate.exclude_history else "all items"
    ranked += f", by {'cosine' if params.evaluate.similarity == 'cosine' else 'dot product'}"
    splits: dict[str, list[str]] = {}
    for dataset in rows["dataset"].unique(maintain_order=True):
        splits.setdefault(split_of(sequences_directory(dataset)), []).append(title(dataset))
    several = " and ".join(f"{split} ({', '.join(datasets)})" for split, datasets in splits.items())
    split = several if len(splits) > 1 else next(iter(splits))
    every = "Every method"
    if tuned:
        every = "Tuned adapters have the loss and the options of grid/tuned. With the settings of params.yaml, every method"
    return (
        f"Encoder {rows['encoder'][0]}, dim {rows['dim'][0]}, {plural(seeds, 'seed')}. {every} has the same "
        f"budget: {optimiser}, learning rate {train.learning_rate:g}, weight decay {train.weight_decay:g}, batches of "
        f"{train.batch_size} users, {against} temperature {train.temperature:g}, at most {train.epochs} epochs, stopped after "
        f"{train.patience} without a better validation NDCG@20. Evaluation is {split}, with full ranking over {ranked}; the "
        "test set was ranked once, with the weights of the best validation."
    )


def _data_table(params: Params, rows: pl.DataFrame) -> Table:
    """Return a table with the source, encoder and checksums of each dataset."""
    datasets = []
    for dataset, encoder in rows.select("dataset", "encoder").unique(maintain_order=True).rows():
        sequences = read_json(sequences_directory(dataset) / SIDECAR, f"the preprocess stage of {dataset}")
        spectrum = read_json(spectrum_directory(dataset, encoder) / SIDECAR, "the svd stage")
        model = spectrum.get("embeddings", {}).get("encoder", {})
        source = params.sources[dataset]
        datasets.append(
            {
                "Dataset": title(dataset),
                "Source": getattr(source, "name", source.kind),
                "Sequences": fingerprint(sequences)[:12],
                "Encoder": model.get("model", encoder),
                "Revision": model.get("revision"),
                "Rank": spectrum.get("plain", {}).get("rank"),
                "Spectrum": fingerprint(spectrum)[:12],
            }
        )
    lines = [[count(v) if isinstance(v, int) else Entry(v) if v else ABSENT for v in row.values()] for row in datasets]
    note = "Sequences and Spectrum are checksums of the artifacts' sidecars, which contain the checksums of files and sources."
    data = pl.DataFrame(datasets, infer_schema_length=None)
    return Table("data", "Data", [Block("", list(datasets[0]), lines)], [note], data)


def _run_table(rows: pl.DataFrame) -> Table:
    """Return a table of all runs with their fingerprints, devices and training times."""
    header = ["Run", "Dim", "Seed", "Fingerprint", "Device", "Threads", "Training, s"]
    lines, fingerprints = [], []
    for row in rows.iter_rows(named=True):
        config = read_json(Path(row["run_directory"]) / "config.json", f"`dvc repro grid/dvc.yaml`, as {STAGES[row['over']]}")
        name = run_name(row)
        lines.append(
            [
                *(Entry(name), number(row["dim"], "d"), number(row["seed"], "d"), Entry(config["fingerprint"][:12])),
                *(Entry(str(row["device"])), number(row["threads"], "d"), number(row["training_seconds"], ".1f")),
            ]
        )
        fingerprints.append({"run": name, "fingerprint": config["fingerprint"]})
    note = "A fingerprint covers the run's settings, the checksums of its inputs and the code that decides its numbers."
    return Table("provenance", "Runs", [Block("", header, lines)], [note], pl.DataFrame(fingerprints))


def report_markdown(sections: list[Section]) -> str:
    """Return the report as Markdown for GitHub, with links to figures/. Folded tables are in the HTML report only."""
    write: dict[type, Callable] = {
        str: markdown_text,
        list: lambda sentences: "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences),
        Table: lambda table: markdown(table).strip(),
        Figure: lambda figure: f"![{markdown_text(figure.finding)}](figures/{figure.name}.svg)\n\n{markdown_text(figure.text)}",
        Folded: lambda folded: f"{markdown_text(folded.summary)}: listed in report.html.",
    }
    parts = []
    for level, section in enumerate(sections):
        heading = f"{'##'[: 1 + bool(level)]} {markdown_text(section.heading)}"
        parts.append(heading)
        if section.about:
            parts.append(f"*{markdown_text(' · '.join(f'{name}: {value}' for name, value in section.about))}*")
        parts += [write[type(part)](part) for part in section.parts]
    return "\n\n".join(parts) + "\n"
