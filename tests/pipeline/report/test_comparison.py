"""The selected run beside the grid's cells and the paper's row."""

from pipeline.report.comparison import selected_lines
from tests.pipeline.report.values import BOTH, rows


def test_the_selected_run_stands_among_the_grids_cells_and_above_the_papers_row() -> None:
    run = {"dataset": "office", "encoder": "minilm", "backbone": "sasrec", "adapter": "spectran", "dim": "64", "seed": "3"}
    metrics = {"HR@10": 0.1, "NDCG@10": 0.05, "HR@20": 0.2, "NDCG@20": 0.25, "MRR": 0.03}
    header, *table = selected_lines(metrics, run, rows(BOTH), list(metrics))
    assert header == ["", "NDCG@20", "HR@20", "NDCG@10", "HR@10", "MRR", "to this run"]
    assert [(row[0], row[1], row[-1]) for row in table] == [
        ("grid: spectran, minilm, dim 16 (2 seeds)", "0.3300", "+32.0 %"),
        ("grid: alphafuse, minilm, dim 16 (2 seeds)", "0.3000", "+20.0 %"),
        ("this run (spectran, dim 64, seed 3)", "0.2500", "–"),
        ("grid: base, minilm, dim 16 (2 seeds)", "0.1500", "-40.0 %"),
        ("paper (LLaMA3-8B, dim 128)", "0.0612", "-75.5 %"),
    ], "sorted, and seeds are folded"
    assert table[0][5] == "–", "the cells hold no MRR here"
    assert len(selected_lines(metrics, run | {"dataset": "demo"}, None, list(metrics))) == 2
