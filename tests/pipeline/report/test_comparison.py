"""The selected run beside the paper's row and the grid's cells."""

from pipeline.report.comparison import selected_markdown
from tests.pipeline.report.values import BOTH, parsed, rows


def test_the_selected_run_stands_beside_the_papers_row_and_the_grids() -> None:
    run = {"dataset": "office", "encoder": "minilm", "backbone": "sasrec", "adapter": "spectran", "dim": "64", "seed": "3"}
    metrics = {"HR@20": 0.1, "NDCG@20": 0.05, "MRR": 0.03}
    table = parsed(selected_markdown(metrics, run, rows(BOTH), list(metrics)))
    labels = [row[""] for row in table]
    assert labels == [
        "this run (spectran, dim 64, seed 3)",
        "paper (LLaMA3-8B, dim 128)",
        "grid: base, minilm, dim 16 (2 seeds)",
        "grid: alphafuse, minilm, dim 16 (2 seeds)",
        "grid: spectran, minilm, dim 16 (2 seeds)",
    ]
    assert [table[0][name] for name in metrics] == ["0.1000", "0.0500", "0.0300"]
    assert [table[1][name] for name in metrics] == ["0.1567", "0.0612", "–"]
    assert [table[4][name] for name in metrics] == ["0.3300", "0.3300", "–"], "seeds are folded; the cells hold no MRR here"
    demo = run | {"dataset": "demo"}
    assert len(parsed(selected_markdown(metrics, demo, None, list(metrics)))) == 1
