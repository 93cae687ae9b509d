"""The paper's six tables and the table of significance tests, built from data frames."""

import math

import polars as pl

from common.words import plural
from pipeline.grid.cells import KEYS, PAIR, SPECTRAN, Cell
from pipeline.params import Params
from pipeline.report.formats import ABSENT, Block, Entry, Table, count, number, percent
from pipeline.report.measured import Measured
from pipeline.report.paper import paper_values
from pipeline.report.results import average, improvements, summarise, table_metrics
from pipeline.report.significance import SIGNIFICANT
from pipeline.report.table_data import DIMENSION_KEYS, VARIANT_KEYS, dimension_rows, sizes, variant_rows, weights
from pipeline.report.titles import interval, pair_title, title
from pipeline.report.variants import of_cells

# ---------------------------------------------------------------------------------------------------------------- the six tables


def table1(counts: pl.DataFrame) -> Table:
    """Return the table of dataset sizes. counts: from `table_data.sizes`."""
    names = ("users", "items", "interactions")
    in_paper = counts["paper_users"].is_not_null().any()
    header = [
        "Dataset",
        *(part for name in names for part in ([name.capitalize(), "paper", "difference"] if in_paper else [name.capitalize()])),
    ]
    rows = []
    for row in counts.iter_rows(named=True):
        line = [Entry(title(row["dataset"]))]
        for name in names:
            line.append(count(row[name]))
            if in_paper:
                line += [count(row[f"paper_{name}"]), count(row[f"difference_{name}"], "+,.0f")]
        rows.append([*line, number(100 * row["density"], ".3f", unit=" %")])
    return Table("table1", "Datasets", [Block("", [*header, "Density"], rows)], [], counts)


def table2(summary: pl.DataFrame, setting: str = "", file: str = "table2", suffix: str = "") -> Table:
    """Return the table of every adapter on every dataset and backbone.

    summary: from `results.summarise`. setting: our encoder and dim, for the note on the paper. suffix: added to the title.
    """
    spread = "Mean ± standard deviation over seeds; best" if summary["std"].is_not_null().any() else "Best"
    notes = [f"{spread} bold, second underlined."]
    if (ours := improvements(summary)).height:
        notes.append(f"SpecTran over the best other adapter, on average: {_average(ours)}.")
    shared = summary.filter(pl.col("paper").is_not_null())
    if (ours := improvements(shared)).height:
        theirs, whole = improvements(shared, "paper"), improvements(paper_values("table2"), "paper")
        notes.append(
            f"Over the best of the adapters that the paper has: {_average(ours)}; in the paper, for the same datasets and "
            f"backbones: {_average(theirs)}, for all of its own: {_average(whole)}."
        )
    blocks = _result_blocks(summary, KEYS)
    return Table(file, f"Adapters{suffix}", blocks, notes + _paper_note(summary, setting), summary)


def table3(summary: pl.DataFrame, absent: list[str], setting: str = "") -> Table:
    """Return the table of SpecTran's variants. absent: notes on missing rows; other arguments as in `table2`."""
    blocks = _result_blocks(summary, VARIANT_KEYS)
    notes = ["SpecTran with one part removed or replaced: φ(QKᵀ), the attention to the whole spectrum; D, the Taylor encoding."]
    return Table("table3", "SpecTran's variants", blocks, notes + absent + _paper_note(summary, setting), summary)


def table3_significance(parts: pl.DataFrame) -> Table:
    """Return the table that compares SpecTran's variants with SpecTran. parts: from `parts.of_cells`."""
    blocks = []
    for block in parts.partition_by(PAIR, maintain_order=True):
        rows = [
            [
                Entry(title(row["variant"])),
                percent(row["gain"], 1),
                ABSENT if row["low"] is None else Entry(interval(row), row["low"]),
                number(row["p_holm"], mark="best" if row["p_holm"] < SIGNIFICANT else ""),
            ]
            for row in block.iter_rows(named=True)
        ]
        header = ["Variant", f"{block['metric'][0]} against SpecTran", "95 % interval", "p (Holm)"]
        blocks.append(Block(f"{_heading(block)} ({plural(block['users'][0], 'user')})", header, rows))
    notes = [
        "Relative difference from SpecTran, its bootstrap interval over users, and p of a permutation test over users, adjusted "
        f"by Holm for the variants (bold: below {SIGNIFICANT}). Both measure chance in the users, not in training."
    ]
    return Table("table3-significance", "SpecTran's variants against SpecTran", blocks, notes, parts)


def table4(summary: pl.DataFrame, absent: list[str], setting: str = "") -> Table:
    """Return the table of adapters at several dims. Arguments as in `table3`."""
    blocks = _result_blocks(summary, DIMENSION_KEYS)
    return Table("table4", "Dimensions", blocks, absent + _paper_note(summary, setting), summary)


def table5(cost: pl.DataFrame) -> Table:
    """Return the table of trainable parameters and seconds. cost: from `table_data.cost`."""
    blocks = []
    for block in cost.partition_by(PAIR, maintain_order=True):
        in_paper = block["paper_training_seconds"].is_not_null().any()
        header = ["Adapter", "Trainable parameters", "Training, s", "s per epoch", "Epochs", "Best epoch", "Ranking all users, s"]
        header += ["paper: parameters", "difference", "paper: training, s", "paper: inference, s"] if in_paper else []
        rows = []
        for row in block.iter_rows(named=True):
            line = [
                Entry(title(row["adapter"])),
                count(row["trainable_parameters"]),
                number(row["training_seconds"], ".1f", row["training_seconds_std"]),
                number(row["seconds_per_epoch"], ".2f"),
                number(row["epochs"], ".0f"),
                number(row["best_epoch"], ".0f"),
                number(row["inference_seconds"], ".2f"),
            ]
            if in_paper:
                line += [count(row["paper_trainable_parameters"]), count(row["difference_trainable_parameters"], "+,.0f")]
                line += [number(row[f"paper_{kind}_seconds"], ".2f") for kind in ("training", "inference")]
            rows.append(line)
        blocks.append(Block(_heading(block), header, rows))
    machines = sorted({f"{row['device']}, {plural(row['threads'], 'thread')}" for row in cost.iter_rows(named=True)})
    notes = [
        f"Seconds per run on {' and '.join(machines)}; other runs may have run there meanwhile. Compare them within this table "
        "only; the paper's were measured on another machine."
    ]
    return Table("table5", "Cost", blocks, notes, cost)


def table6(learned: pl.DataFrame, setting: str = "") -> Table:
    """Return the table of SpecTran's mean principal and subordinate weights. learned: from `table_data.weights`."""
    in_paper = learned["paper"].is_not_null().any()
    rows = []
    for block in learned.partition_by(PAIR, maintain_order=True):
        line = [Entry(title(block["dataset"][0])), Entry(title(block["backbone"][0]))]
        by_kind = {row["kind"]: row for row in block.iter_rows(named=True)}
        for kind in ("principal", "subordinate"):
            row = by_kind.get(kind, {})
            line.append(number(row.get("mean"), ".2f", row.get("std")))
            if in_paper:
                line += [number(row.get("paper"), ".2f"), number(row.get("difference"), "+.2f")]
        rows.append(line)
    paper_columns = ["paper", "difference"] if in_paper else []
    header = ["Dataset", "Backbone", "Principal", *paper_columns, "Subordinate", *paper_columns]
    notes = [
        "Principal: the mean of D_i + φ_ii over the output dimensions i that hold text. Subordinate: the mean of the sum of "
        "|φ_ij| over the directions j after these. ±: standard deviation over seeds."
    ]
    return Table("table6", "SpecTran's weights", [Block("", header, rows)], notes + _paper_note(learned, setting), learned)


def significance(comparisons: pl.DataFrame, file: str = "significance", suffix: str = "") -> Table:
    """Return the table that compares the leader of each block with every other adapter. comparisons: from `users.comparisons`."""
    blocks = []
    for block in comparisons.partition_by(PAIR, maintain_order=True):
        names = block["metric"].unique(maintain_order=True).to_list()
        header = ["Other adapter"]
        for name in names:
            header += [name, "gain", "95 % interval", "p (Holm)"]
        pairs = {(row["other"], row["metric"]): row for row in block.iter_rows(named=True)}
        rows = []
        for other in block["other"].unique(maintain_order=True):
            line = [Entry(title(other))]
            for name in names:
                row = pairs[other, name]
                bold = "best" if row["p_holm"] < SIGNIFICANT else ""
                line += [
                    number(row["mean_other"], std=row["std_other"]),
                    percent(row["improvement"], 1),
                    Entry(interval(row), row["low"]) if math.isfinite(row["low"]) else ABSENT,
                    number(row["p_holm"], mark=bold),
                ]
            rows.append(line)
        footer = [Entry(title(block["leader"][0]))]
        for row in (block.filter(pl.col("metric") == name).row(0, named=True) for name in names):
            footer += [number(row["mean"], std=row["std"]), *[Entry("")] * 3]
        blocks.append(Block(f"{_heading(block)} ({plural(block['users'][0], 'user')})", header, rows, [footer]))
    notes = [
        "Gain: relative improvement of the leader, in the last row, over the other adapter. p: two-sided sign-flip permutation "
        "test over users, whose metrics are averaged over seeds, with Holm's adjustment over the comparisons of a metric (bold: "
        f"below {SIGNIFICANT}). Interval: bootstrap over users. Both measure chance in the users; ± is the standard deviation "
        "over seeds, which measures chance in training."
    ]
    return Table(file, f"The leader against each other adapter{suffix}", blocks, notes, comparisons)


def all_tables(params: Params, measured: Measured, missing: list[Cell]) -> dict[str, Table]:
    """Return, by name, the tables that have cells. missing: listed cells that are not in the report."""
    grid, names = params.grid, table_metrics(params.evaluate.cutoffs)
    rows, default = measured.rows, measured.default
    setting = f"{default['encoder'][0]}, dim {default['dim'][0]}"
    default_variant = params.adapters.get(SPECTRAN, {}).get("variant", "full")
    tables = [table1(sizes(default["dataset"].unique(maintain_order=True).to_list())), table5(measured.cost)]
    for result_set in measured.result_sets:
        suffix = f", tuned, {title(result_set.loss)}" if result_set.loss else ""
        tables.append(table2(result_set.summary, setting, result_set.file_name("table2"), suffix))
        if result_set.comparisons.height:
            tables.append(significance(result_set.comparisons, result_set.file_name("significance"), suffix))
    if (variants := variant_rows(rows, grid, default_variant)).height and grid.ablations.datasets:
        tables.append(table3(summarise(variants, names, VARIANT_KEYS, "table3"), _absent(missing, "variants", variants), setting))
        if (parts := of_cells(variants, measured.cutoff)).height:
            tables.append(table3_significance(parts))
    if (dims := dimension_rows(rows, grid)).height and grid.dimensions.datasets:
        tables.append(table4(summarise(dims, names, DIMENSION_KEYS, "table4"), _absent(missing, "dims", dims), setting))
    if (learned := weights(default)).height:
        tables.append(table6(learned, setting))
    return {table.name: table for table in sorted(tables, key=lambda table: table.name)}


def _absent(missing: list[Cell], over: str, rows: pl.DataFrame) -> list[str]:
    """Return a note on what a table of variants or dims lacks: missing cells, or the rows of Base and SpecTran from Table 2."""
    absent = [cell.name for cell in missing if cell.over == over]
    if over == "variants":
        for block in rows.partition_by(PAIR, maintain_order=True):
            for name in ("base", SPECTRAN):
                if name not in block["variant"]:
                    absent.append(f"{title(name)} on {_heading(block)}, which is not among the grid's cells")
    return [f"Missing: {', '.join(absent)}."] * bool(absent)


def _paper_note(summary: pl.DataFrame, setting: str) -> list[str]:
    """Return a note on the settings of the paper's numbers, or [] if the table has none of them."""
    if not summary["paper"].is_not_null().any():
        return []
    ours = f"; ours: {setting}" if setting else ""
    return [f"The paper's numbers: LLaMA3-8B embeddings, dim 128 unless another dim is named, tuned{ours}."]


def _heading(block: pl.DataFrame) -> str:
    """Return "Office, SASRec", or "Office, SASRec, dim 64" if the block has a dim."""
    return pair_title(block) + (f", dim {block['dim'][0]}" if "dim" in block.columns else "")


def _average(improvement: pl.DataFrame) -> str:
    return f"{100 * average(improvement):+.2f} %"


def _marks(block: pl.DataFrame, key: str, metric: str) -> dict[str, str]:
    """Return {key: mark} for the best and the second row of a block by a metric; {} for a single row.

    Rows that are equal at full precision share a place: two rows tied for the best are both marked so, and none is second.
    """
    rows = block.filter(pl.col("metric") == metric)
    places = dict(zip(rows[key], rows["mean"].rank("min", descending=True), strict=True))
    return {name: ("best", "second")[place - 1] for name, place in places.items() if place in (1, 2)} if len(places) > 1 else {}


def _result_blocks(summary: pl.DataFrame, keys: list[str]) -> list[Block]:
    """Return the blocks of a table whose rows are the values of the last key, one group of blocks for each value of the others.

    The first block of a group has means and standard deviations over seeds. If the paper has values, a second block compares the
    means with them.
    """
    *above, key = keys
    blocks = []
    for block in summary.partition_by(above, maintain_order=True):
        names = block["metric"].unique(maintain_order=True).to_list()
        values = {(row[key], row["metric"]): row for row in block.iter_rows(named=True)}
        entries = block[key].unique(maintain_order=True).to_list()
        marks = {name: _marks(block, key, name) for name in names}
        heading = _heading(block)
        rows = []
        for entry in entries:
            cells = [(values[entry, name], marks[name].get(entry, "")) for name in names]
            rows.append([Entry(title(entry)), *(number(row["mean"], std=row["std"], mark=mark) for row, mark in cells)])
        footer = _improvement_rows(block, names) if key == "adapter" else []
        header = [key.capitalize(), *names]
        pair = (block["dataset"][0], block["backbone"][0]) if key == "adapter" else None
        blocks.append(Block(f"{heading} ({plural(block['seeds'][0], 'seed')})", header, rows, footer, pair=pair))
        if block["paper"].is_not_null().any():
            wide = [header[0], *(part for name in names for part in (name, "paper", "diff."))]
            compared = [
                [
                    Entry(title(entry)),
                    *(
                        part
                        for row in (values[entry, name] for name in names)
                        for part in (number(row["mean"]), number(row["paper"]), number(row["difference"], "+.4f"))
                    ),
                ]
                for entry in entries
            ]
            blocks.append(Block(f"{heading}, beside the paper", wide, compared))
    return blocks


def _improvement_rows(block: pl.DataFrame, names: list[str]) -> list[list[Entry]]:
    """Return the rows below a block that hold SpecTran's improvement: over all others, and over those that the paper has, beside
    the paper's own.
    """
    shared = block.filter(pl.col("paper").is_not_null())
    gains = {"SpecTran over best other": improvements(block)}
    if shared.height < block.height:
        gains["over best of the paper's"] = improvements(shared)
    gains["the same, in the paper"] = improvements(shared, "paper")
    rows = []
    for label, gain in gains.items():
        if gain.height:
            by_metric = dict(zip(gain["metric"], gain["improvement"], strict=True))
            rows.append([Entry(label), *(percent(by_metric.get(name)) for name in names)])
    return rows
