"""Cells to tables: means, marks, improvements, Markdown, LaTeX and CSV."""

import re
from pathlib import Path

import polars as pl
import pytest

from pipeline.report.formats import latex, latex_text, markdown
from pipeline.report.paper import paper_values
from pipeline.report.results import improvements, summarise
from pipeline.report.table_data import DIMENSION_KEYS, VARIANT_KEYS, dimension_rows, variant_rows
from pipeline.report.tables import table2, table3, table4
from tests.pipeline.grid.lists import grid
from tests.pipeline.report.values import BOTH, NAMES, OFFICE, Cell, parsed, rows


def summary(values: dict[Cell, list[float]]) -> pl.DataFrame:
    return summarise(rows(values), NAMES)


def test_mean_and_sample_deviation_over_seeds_beside_the_papers_number() -> None:
    found = summary(OFFICE).filter((pl.col("adapter") == "spectran") & (pl.col("metric") == "NDCG@20")).row(0, named=True)
    assert found["mean"] == pytest.approx(0.33)
    assert found["std"] == pytest.approx(0.06 / 2**0.5)
    assert found["seeds"] == 2
    assert found["paper"] == 0.0612
    assert summary(BOTH).filter(pl.col("dataset") == "demo")["paper"].is_null().all()


def test_one_seed_has_no_spread() -> None:
    found = summary({("office", "sasrec", "base"): [0.1]})
    assert found["std"].is_null().all()
    assert "±" not in markdown(table2(found))
    assert "(1 seed)" in markdown(table2(found))


def test_improvement_is_over_the_best_other_adapter_of_the_block() -> None:
    found = improvements(summary(BOTH)).filter(pl.col("metric") == "HR@20")
    assert dict(found.select("dataset", "best").rows()) == {"office": "alphafuse", "demo": "base"}
    assert dict(found.select("dataset", "improvement").rows()) == pytest.approx({"office": 0.1, "demo": -0.2})


def test_the_best_is_bold_and_the_second_underlined() -> None:
    table = parsed(markdown(table2(summary(OFFICE))))
    table, in_paper = table[:5], table[5:]
    labels = ["Base (ID only)", "AlphaFuse", "SpecTran", "SpecTran over best other", "the same, in the paper"]
    assert [row["Adapter"] for row in table] == labels
    assert [row["HR@20"] for row in table[:4]] == ["0.1500 ± 0.0707", "<u>0.3000</u> ± 0.0000", "**0.3300** ± 0.0424", "+10.00 %"]
    assert [row["NDCG@10"] for row in table][:3] == ["0.0750 ± 0.0354", "<u>0.1500</u> ± 0.0000", "**0.1650** ± 0.0212"]
    assert list(table[0]) == ["Adapter", "NDCG@10", "NDCG@20", "HR@10", "HR@20"], "the paper's order"
    assert [row["Adapter"] for row in in_paper] == labels[:3]
    assert table[4]["HR@20"] == f"{100 * (0.1567 / 0.1244 - 1):+.2f} %", "the paper's own, over the same adapters"


def test_every_block_has_its_own_marks_and_the_average_is_over_blocks() -> None:
    text = markdown(table2(summary(BOTH)))
    assert text.count("**") == 2 * 2 * 4
    assert text.count("<u>") == 2 * 4
    in_paper = [0.0471 / 0.0401, 0.0612 / 0.0511, 0.1003 / 0.0805, 0.1567 / 0.1244]
    average = f"{100 * (sum(in_paper) / 4 - 1):+.2f} %"
    assert f"on average: -5.00 %; the paper's, for the same datasets, backbones and adapters: {average}, for all" in text
    assert "for all of its own: +9.17 %." in text
    assert "### Office, SASRec (2 seeds)" in text


def test_an_adapter_alone_is_neither_best_nor_second() -> None:
    text = markdown(table2(summary({("office", "sasrec", "spectran"): [0.1, 0.2]})))
    assert "**" not in text
    assert "over best other" not in text


def test_a_table_without_spectran_has_no_improvement() -> None:
    text = markdown(table2(summary({cell: seeds for cell, seeds in OFFICE.items() if cell[2] != "spectran"})))
    assert "SpecTran" not in text
    assert "the same, in the paper" not in text
    assert "**0.3000**" in text


def test_the_papers_improvement_is_the_one_that_it_states() -> None:
    """The paper states 9.17 %, over the best baseline of each dataset, backbone and metric."""
    values = [row["improvement"] for row in improvements(paper_values("table2"), "paper").to_dicts()]
    assert len(values) == 4 * 3 * 4
    assert sum(values) / len(values) == pytest.approx(0.0917, abs=5e-5)


def test_ours_stand_beside_the_papers_with_the_difference() -> None:
    beside = next(block for block in table2(summary(BOTH)).blocks if block.heading == "Office, SASRec, beside the paper")
    at = beside.header.index("NDCG@20")
    measured = {row[0].text: [entry.value for entry in row[at : at + 3]] for row in beside.rows}
    assert beside.header[at : at + 3] == ["NDCG@20", "paper", "diff."]
    assert measured["SpecTran"] == pytest.approx([0.33, 0.0612, 0.33 - 0.0612])
    assert measured["Base (ID only)"] == pytest.approx([0.15, 0.0423, 0.15 - 0.0423])
    assert [block.heading for block in table2(summary(BOTH)).blocks if "Demo" in block.heading] == ["Demo, SASRec (2 seeds)"]


def test_markdown_latex_and_csv_hold_the_same_numbers(tmp_path: Path) -> None:
    table = table2(summary(BOTH))
    table.write(tmp_path)
    data = pl.read_csv(tmp_path / "table2.csv")
    assert data.columns == ["dataset", "backbone", "adapter", "metric", "mean", "std", "seeds", "paper", "difference"]
    for row in data.iter_rows(named=True):
        for file in ("table2.md", "table2.tex"):
            text = (tmp_path / file).read_text()
            assert f"{row['mean']:.4f}" in text
            assert f"{row['std']:.4f}" in text


def test_latex_is_balanced() -> None:
    text = latex(table2(summary(BOTH)))
    assert text.startswith("\\begin{tabular}{lcccc}\n\\toprule")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    for tabular in text.split("\n\n"):
        width = len(re.findall(r"begin.tabular..(l[c]+).", tabular)[0])
        lines = [line for line in tabular.splitlines() if " & " in line]
        assert all(line.count(" & ") == width - 1 and line.endswith(r" \\") for line in lines)
    assert r"\textbf{0.3300} {\scriptsize $\pm$ 0.0424}" in text
    assert r"\underline{0.3000} {\scriptsize $\pm$ 0.0000}" in text
    assert r"+10.00\,\%" in text
    assert not re.search(r"(?<!\\)%", text), "a bare per cent sign would hide the rest of the line"


def test_latex_survives_the_names_that_users_give_their_datasets() -> None:
    values = {("my_shop & co #1", "sasrec", "base"): [0.1], ("my_shop & co #1", "sasrec", "spectran"): [0.2]}
    heading = next(line for line in latex(table2(summary(values))).splitlines() if "multicolumn" in line)
    assert r"My\_shop \& co \#1, SASRec" in heading


def test_what_latex_takes_for_commands_is_printed() -> None:
    assert latex_text("a_b & 5 % of $3 {x} ^ ~ \\") == (
        r"a\_b \& 5 \% of \$3 \{x\} \textasciicircum{} \textasciitilde{} \textbackslash{}"
    )


VARIED = {"datasets": ["office"], "backbones": ["sasrec"], "variants": ["without_attention", "without_encoding"]}


def test_table_3_takes_base_and_spectran_from_the_cells_of_table_2() -> None:
    own = rows(OFFICE).with_columns(over=pl.lit("seeds"))
    other = rows({("office", "sasrec", "spectran"): [0.2, 0.3]}).with_columns(over=pl.lit("variants"))
    extra = [other.with_columns(variant=pl.lit(name)) for name in ("without_encoding", "without_attention")]
    found = variant_rows(pl.concat([own, *extra], how="diagonal"), grid(ablations=VARIED), "full")
    assert found["variant"].unique(maintain_order=True).to_list() == ["base", "spectran", "without_attention", "without_encoding"]
    summed = summarise(found, NAMES, VARIANT_KEYS, "table3")
    means = {row["variant"]: (row["mean"], row["paper"]) for row in summed.filter(metric="HR@20").iter_rows(named=True)}
    assert means["spectran"] == (pytest.approx(0.33), 0.1567)
    assert means["without_attention"] == (pytest.approx(0.25), 0.1553)
    means_block, paper_block = table3(summed, []).blocks
    assert [row[0].text for row in means_block.rows] == ["Base (ID only)", "SpecTran", "without φ(QKᵀ)", "without D"]
    assert means_block.rows[1][4].mark == "best"
    assert not means_block.footer, "an ablation is not compared as a method"
    assert paper_block.rows[3][11].value == 0.1103


def test_table_4_has_a_block_per_dim_and_counts_no_run_twice() -> None:
    lists = {"datasets": ["toys"], "backbones": ["sasrec"], "adapters": ["base", "spectran"], "dims": [16, 64]}
    cells = {("toys", "sasrec", "base"): [0.1], ("toys", "sasrec", "spectran"): [0.2], ("toys", "sasrec", "morec"): [0.3]}
    own = rows(cells).with_columns(over=pl.lit("seeds"), dim=64)
    dims = [rows(cells).filter(pl.col("adapter") != "morec").with_columns(over=pl.lit("dims"), dim=dim) for dim in (64, 16)]
    found = dimension_rows(pl.concat([own, *dims]), grid(dim=64, dimensions=lists))
    assert found.select("dim", "adapter").rows() == [(16, "base"), (16, "spectran"), (64, "base"), (64, "spectran")]
    summed = summarise(found, NAMES, DIMENSION_KEYS, "table4")
    assert summed.filter(dim=16, adapter="spectran", metric="NDCG@20")["paper"].to_list() == [0.0327]
    blocks = table4(summed, []).blocks
    assert [block.heading for block in blocks][::2] == ["Toys, SASRec, dim 16 (1 seed)", "Toys, SASRec, dim 64 (1 seed)"]
    assert [entry.text for entry in blocks[0].footer[0]] == ["SpecTran over best other", *["+100.00 %"] * 4]
