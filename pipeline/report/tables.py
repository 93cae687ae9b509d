"""The paper's six tables and the tests over users, from data frames."""

import math

import polars as pl

from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.losses import LOSSES
from pipeline.grid.cells import KEYS, OURS, Cell
from pipeline.params import Params
from pipeline.report.formats import ABSENT, Block, Entry, Table, count, markdown_lines, number, percent
from pipeline.report.results import (
    BLOCK,
    DIMENSION_KEYS,
    VARIANT_KEYS,
    ResultSet,
    average,
    dimension_rows,
    improvements,
    long_form,
    paper_table,
    sizes,
    summarise,
    table_metrics,
    variant_rows,
    weights,
)

TITLES = {
    **ADAPTERS,
    **BACKBONES,
    **LOSSES,
    "without_attention": "without φ(QKᵀ)",
    "principal_sigma": "D = Σ, not learned",
    "principal_identity": "D = I, not learned",
    "without_encoding": "without D",
}
SIGNIFICANT = 0.05


def title(name: str) -> str:
    """The name as papers print it."""
    return TITLES.get(name, name.capitalize())


# ---------------------------------------------------------------------------------------------------------------- the six tables


def table1(counts: pl.DataFrame) -> Table:
    """Sizes of the datasets."""
    names = ("users", "items", "interactions")
    known = counts["paper_users"].is_not_null().any()
    header = [
        "Dataset",
        *(part for name in names for part in ([name.capitalize(), "paper", "difference"] if known else [name.capitalize()])),
    ]
    rows = []
    for row in counts.iter_rows(named=True):
        line = [Entry(title(row["dataset"]))]
        for name in names:
            line.append(count(row[name]))
            if known:
                line += [count(row[f"paper_{name}"]), count(row[f"difference_{name}"], "+,.0f")]
        rows.append([*line, number(100 * row["density"], ".3f", unit=" %")])
    return Table("table1", "Datasets", [Block("", [*header, "Density"], rows)], [], counts)


def table2(summary: pl.DataFrame, setting: str = "", file: str = "table2", how: str = "") -> Table:
    """Every adapter on every dataset and backbone; `how` they were set, where not by params.yaml."""
    spread = "Mean ± standard deviation over seeds; best" if summary["std"].is_not_null().any() else "Best"
    notes = [f"{spread} bold, second underlined."]
    improvement = improvements(summary)
    if improvement.height:
        theirs = improvements(summary, "paper")
        everywhere = improvements(long_form("table2"), "paper")
        beside = f"; the paper, with the same: {100 * average(theirs):+.2f} %" if theirs.height else ""
        notes.append(
            f"SpecTran over the best other adapter, on average: {100 * average(improvement):+.2f} %{beside}"
            f"{f', with all of its datasets, backbones and adapters: {100 * average(everywhere):+.2f} %' if beside else ''}."
        )
    blocks = _result_blocks(summary, KEYS)
    return Table(file, f"Adapters{how}", blocks, notes + _about_the_paper(summary, setting), summary)


def table3(summary: pl.DataFrame, absent: list[str], setting: str = "") -> Table:
    """SpecTran's variants."""
    blocks = _result_blocks(summary, VARIANT_KEYS)
    notes = ["SpecTran with one part left out or replaced: φ(QKᵀ), the attention to the whole spectrum; D, the Taylor encoding."]
    return Table("table3", "SpecTran's variants", blocks, notes + absent + _about_the_paper(summary, setting), summary)


def table4(summary: pl.DataFrame, absent: list[str], setting: str = "") -> Table:
    """Adapters at several dims."""
    return Table(
        "table4", "Dimensions", _result_blocks(summary, DIMENSION_KEYS), absent + _about_the_paper(summary, setting), summary
    )


def table5(cost: pl.DataFrame) -> Table:
    """Parameters and seconds."""
    blocks = []
    for block in cost.partition_by(BLOCK, maintain_order=True):
        known = block["paper_training_seconds"].is_not_null().any()
        header = ["Adapter", "Trainable parameters", "Training, s", "s an epoch", "Epochs", "Best epoch", "Ranking all users, s"]
        header += ["paper: parameters", "difference", "paper: training, s", "paper: inference, s"] if known else []
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
            if known:
                line += [count(row["paper_trainable_parameters"]), count(row["difference_trainable_parameters"], "+,.0f")]
                line += [number(row[f"paper_{kind}_seconds"], ".2f") for kind in ("training", "inference")]
            rows.append(line)
        blocks.append(Block(_heading(block), header, rows))
    machines = sorted(
        {f"{row['device']}, {row['threads']} thread{'s'[: row['threads'] > 1]}" for row in cost.iter_rows(named=True)}
    )
    notes = [
        f"Seconds on {' and '.join(machines)} a run, several runs side by side: compare them within this table, not with the "
        "paper's, which are another machine's."
    ]
    return Table("table5", "Cost", blocks, notes, cost)


def table6(learned: pl.DataFrame, setting: str = "") -> Table:
    """SpecTran's weights."""
    known = learned["paper"].is_not_null().any()
    rows = []
    for block in learned.partition_by(BLOCK, maintain_order=True):
        line = [Entry(title(block["dataset"][0])), Entry(title(block["backbone"][0]))]
        by_kind = {row["kind"]: row for row in block.iter_rows(named=True)}
        for kind in ("principal", "subordinate"):
            row = by_kind.get(kind, {})
            line.append(number(row.get("mean"), ".2f", row.get("std")))
            if known:
                line += [number(row.get("paper"), ".2f"), number(row.get("difference"), "+.2f")]
        rows.append(line)
    beside = ["paper", "difference"] if known else []
    header = ["Dataset", "Backbone", "Principal", *beside, "Subordinate", *beside]
    notes = [
        "Mean over the dim output directions i of D_i + φ_ii, and of the sum of |φ_ij| over j > dim. What follows ± is the "
        "standard deviation over seeds."
    ]
    return Table("table6", "SpecTran's weights", [Block("", header, rows)], notes + _about_the_paper(learned, setting), learned)


def significance(comparisons: pl.DataFrame, file: str = "significance", how: str = "") -> Table:
    """The leader of each block against each other adapter."""
    blocks = []
    for block in comparisons.partition_by(BLOCK, maintain_order=True):
        names = block["metric"].unique(maintain_order=True).to_list()
        header = ["Other adapter"]
        for name in names:
            header += [name, "gain", "95 % interval", "p (Holm)"]
        found = {(row["other"], row["metric"]): row for row in block.iter_rows(named=True)}
        rows = []
        for other in block["other"].unique(maintain_order=True):
            line = [Entry(title(other))]
            for name in names:
                row = found[other, name]
                bold = "best" if row["p_holm"] < SIGNIFICANT else ""
                interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f} %"
                line += [
                    number(row["mean_other"], std=row["std_other"]),
                    percent(row["improvement"], 1),
                    Entry(interval, row["low"]) if math.isfinite(row["low"]) else ABSENT,
                    number(row["p_holm"], mark=bold),
                ]
            rows.append(line)
        mine = [block.filter(pl.col("metric") == name).row(0, named=True) for name in names]
        footer = [Entry(title(block["leader"][0]))]
        for row in mine:
            footer += [number(row["mean"], std=row["std"]), *[Entry("")] * 3]
        blocks.append(Block(f"{_heading(block)} ({block['users'][0]:,} users)", header, rows, [footer]))
    notes = [
        "Gain: of the leader, whose row is the last, over the other adapter. Per user, averaged over seeds: two-sided sign-flip "
        "permutation test, Holm's adjustment over the comparisons of a metric (bold: "
        f"below {SIGNIFICANT}), bootstrap interval over users. This is chance in the users; what follows ± is the standard "
        "deviation over seeds, chance in the training."
    ]
    return Table(file, f"The leader against each other adapter{how}", blocks, notes, comparisons)


def all_tables(
    params: Params,
    rows: pl.DataFrame,
    missing: list[Cell],
    result_sets: list[ResultSet],
    cost: pl.DataFrame,
) -> dict[str, Table]:
    """The tables that there are cells for, by name."""
    grid, names = params.grid, table_metrics(params.evaluate.cutoffs)
    plain = rows.filter(pl.col("over") == "seeds")
    setting = f"{plain['encoder'][0]}, dim {plain['dim'][0]}"
    ours = params.adapters.get(OURS, {}).get("variant", "full")
    made = [table1(sizes(plain["dataset"].unique(maintain_order=True).to_list())), table5(cost)]
    for result_set in result_sets:
        how = f", tuned, {title(result_set.loss)}" if result_set.loss else ""
        made.append(table2(result_set.summary, setting, result_set.named("table2"), how))
        if result_set.comparisons.height:
            made.append(significance(result_set.comparisons, result_set.named("significance"), how))
    if (variants := variant_rows(rows, grid, ours)).height and grid.ablations.datasets:
        made.append(table3(summarise(variants, names, VARIANT_KEYS, "table3"), _absent(missing, "variants", variants), setting))
    if (dims := dimension_rows(rows, grid)).height and grid.dimensions.datasets:
        made.append(table4(summarise(dims, names, DIMENSION_KEYS, "table4"), _absent(missing, "dims", dims), setting))
    if (learned := weights(plain)).height:
        made.append(table6(learned, setting))
    return {table.name: table for table in sorted(made, key=lambda table: table.name)}


def _absent(missing: list[Cell], over: str, rows: pl.DataFrame) -> list[str]:
    """What a table of variants or dims lacks: cells that are not made, or reference rows that `grid:` does not list."""
    lacks = [cell.name for cell in missing if cell.over == over]
    if over == "variants":
        for block in rows.partition_by(BLOCK, maintain_order=True):
            for name in ("base", OURS):
                if name not in block["variant"]:
                    lacks.append(f"{title(name)} on {_heading(block)}, which the grid's lists or cells do not have")
    return [f"Missing: {', '.join(lacks)}."] * bool(lacks)


def _about_the_paper(summary: pl.DataFrame, setting: str) -> list[str]:
    if not summary["paper"].is_not_null().any():
        return []
    ours = f"; ours: {setting}" if setting else ""
    return [f"The paper's: LLaMA3-8B embeddings, dim 128 where no dim is named, tuned{ours}."]


def _heading(block: pl.DataFrame) -> str:
    first = block.row(0, named=True)
    dim = f", dim {first['dim']}" if "dim" in first else ""
    return f"{title(first['dataset'])}, {title(first['backbone'])}{dim}"


def _marks(block: pl.DataFrame, key: str, metric: str) -> dict[str, str]:
    """Row -> "best" or "second" for a metric of a block."""
    order = block.filter(pl.col("metric") == metric).sort("mean", descending=True, maintain_order=True)[key].to_list()
    return dict(zip(order, ("best", "second"), strict=False)) if len(order) > 1 else {}


def _result_blocks(summary: pl.DataFrame, keys: list[str]) -> list[Block]:
    """Two blocks for all that share `keys` but the last: means over seeds; and these beside the paper's, where it has any."""
    *above, key = keys
    gains = {value: improvements(summary, value) for value in ("mean", "paper")} if key == "adapter" else {}
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
        footer = []
        for value, label in (("mean", "SpecTran over best other"), ("paper", "the same in the paper")):
            gain = gains[value].join(block, on=above, how="semi") if gains else pl.DataFrame()
            if gain.height:
                found = dict(zip(gain["metric"], gain["improvement"], strict=True))
                footer.append([Entry(label), *(percent(found.get(name)) for name in names)])
        header = [key.capitalize(), *names]
        blocks.append(Block(f"{heading} ({_seeds(block['seeds'][0])})", header, rows, footer))
        if block["paper"].is_not_null().any():
            wide = [header[0], *(part for name in names for part in (name, "paper", "diff."))]
            beside = [
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
            blocks.append(Block(f"{heading}, beside the paper", wide, beside))
    return blocks


def _seeds(number_of: int) -> str:
    return f"{number_of} seed{'s' if number_of > 1 else ''}"


def selected_markdown(figures: dict[str, float], run: dict[str, str], cells: pl.DataFrame | None, names: list[str]) -> str:
    """The selected run, beside the paper's row for it and the grid's cells so far of the same dataset and backbone."""
    lines = [
        ["", *names],
        [f"this run ({run['adapter']}, dim {run['dim']}, seed {run['seed']})", *(f"{figures[n]:.4f}" for n in names)],
    ]
    paper = paper_table().filter(pl.all_horizontal(pl.col(key) == run[key] for key in KEYS))
    if paper.height:
        row = paper.row(0, named=True)
        lines.append(["paper (LLaMA3-8B, dim 128)", *(f"{row[n]:.4f}" if n in row else "–" for n in names)])
    if cells is not None:
        here = cells.filter((pl.col("dataset") == run["dataset"]) & (pl.col("backbone") == run["backbone"]))
        for key, group in here.group_by(["adapter", "dim", "encoder"], maintain_order=True):
            adapter, dim, encoder = map(str, key)
            label = f"grid: {adapter}, {encoder}, dim {dim} ({_seeds(group.height)})"
            lines.append([label, *(f"{group[n].to_numpy().mean():.4f}" if n in group.columns else "–" for n in names)])
    return f"## {title(run['dataset'])}, {title(run['backbone'])}, encoder {run['encoder']}\n\n{markdown_lines(lines)}\n"
