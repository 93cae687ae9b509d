"""Cells to tables: means, marks, improvements, Markdown, LaTeX and CSV."""

import pytest

from pipeline.report.formats import markdown
from pipeline.report.tables import table2
from tests.pipeline.report.values import BOTH, OFFICE, parsed, summary


def test_one_seed_has_no_spread() -> None:
    found = summary({("office", "sasrec", "base"): [0.1]})
    assert found["std"].is_null().all()
    assert "±" not in markdown(table2(found))
    assert "(1 seed)" in markdown(table2(found))


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


def test_rows_that_tie_for_the_best_are_both_bold_and_none_is_second() -> None:
    tied = OFFICE | {("office", "sasrec", "alphafuse"): [0.36, 0.30], ("office", "sasrec", "morec"): [0.20, 0.20]}
    table = parsed(markdown(table2(summary(tied))))
    marked = {row["Adapter"]: row["HR@20"] for row in table[:4]}
    assert marked == {
        "Base (ID only)": "0.1500 ± 0.0707",
        "MoRec": "0.2000 ± 0.0000",
        "AlphaFuse": "**0.3300** ± 0.0424",
        "SpecTran": "**0.3300** ± 0.0424",
    }
    tied[("office", "sasrec", "alphafuse")] = [0.36, 0.30 - 1e-9]
    text = markdown(table2(summary(tied)))
    assert "<u>0.3300</u> ± 0.0424" in text, "equal as printed is not equal"
    tied[("office", "sasrec", "alphafuse")] = [0.20, 0.20]
    text = markdown(table2(summary(tied)))
    assert text.count("**") == 2 * 4
    assert text.count("<u>0.2000</u>") == 2 * 3, "two rows tie for the second place"


def test_every_block_has_its_own_marks_and_the_average_is_over_blocks() -> None:
    text = markdown(table2(summary(BOTH)))
    assert text.count("**") == 2 * 2 * 4
    assert text.count("<u>") == 2 * 4
    in_paper = [0.0471 / 0.0401, 0.0612 / 0.0511, 0.1003 / 0.0805, 0.1567 / 0.1244]
    average = f"{100 * (sum(in_paper) / 4 - 1):+.2f} %"
    assert "SpecTran over the best other adapter, on average: -5.00 %." in text
    ours = "Over the best of the adapters that the paper has: +10.00 %"
    assert f"{ours}; in the paper, for the same datasets and backbones: {average}, for all of its own: +9.17 %." in text
    assert "### Office, SASRec (2 seeds)" in text


def test_the_papers_improvement_stands_beside_ours_over_the_same_adapters() -> None:
    with_ours = OFFICE | {("office", "sasrec", "spec_mlp"): [0.66, 0.66]}
    footer = parsed(markdown(table2(summary(with_ours))))[4:7]
    assert {row["Adapter"]: row["HR@20"] for row in footer} == {
        "SpecTran over best other": "-50.00 %",
        "over best of the paper's": "+10.00 %",
        "the same, in the paper": f"{100 * (0.1567 / 0.1244 - 1):+.2f} %",
    }
    assert "Over the best of the adapters that the paper has: +10.00 %" in markdown(table2(summary(with_ours)))


def test_an_adapter_alone_is_neither_best_nor_second() -> None:
    text = markdown(table2(summary({("office", "sasrec", "spectran"): [0.1, 0.2]})))
    assert "**" not in text
    assert "over best other" not in text


def test_a_table_without_spectran_has_no_improvement() -> None:
    text = markdown(table2(summary({cell: seeds for cell, seeds in OFFICE.items() if cell[2] != "spectran"})))
    assert "SpecTran" not in text
    assert "the same, in the paper" not in text
    assert "**0.3000**" in text


def test_ours_stand_beside_the_papers_with_the_difference() -> None:
    beside = next(block for block in table2(summary(BOTH)).blocks if block.heading == "Office, SASRec, beside the paper")
    at = beside.header.index("NDCG@20")
    measured = {row[0].text: [entry.value for entry in row[at : at + 3]] for row in beside.rows}
    assert beside.header[at : at + 3] == ["NDCG@20", "paper", "diff."]
    assert measured["SpecTran"] == pytest.approx([0.33, 0.0612, 0.33 - 0.0612])
    assert measured["Base (ID only)"] == pytest.approx([0.15, 0.0423, 0.15 - 0.0423])
    assert [block.heading for block in table2(summary(BOTH)).blocks if "Demo" in block.heading] == ["Demo, SASRec (2 seeds)"]
