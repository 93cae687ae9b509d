"""The row of a tested run, from ranks by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.errors import UserError
from pipeline.evaluation.summary import run_summary
from pipeline.params import load_params
from pipeline.runs import Run

BEYOND = {"rank": {"coverage@20": 0.9}, "rank_without_history": {"coverage@20": 0.8}}


@pytest.fixture
def tested(tmp_path: Path) -> Path:
    """The files of a tested run that its row is made of."""
    folder = tmp_path / "run"
    folder.mkdir()
    ranks = {"rank": [1, 3, 21, 40], "rank_without_history": [1, 1, 2, 30], "rank_dot": [1, 21, 21, 21]}
    pl.DataFrame({"user_id": ["a", "b", "c", "d"], **ranks}).write_parquet(folder / "ranks.parquet")
    for name, content in {
        "training": {"validation": {"NDCG@20": 0.5}, "epochs": 4, "best_epoch": 2, "trainable_parameters": 7},
        "run": {"seconds": 8.0, "seconds_per_epoch": 2.0, "device": "x86_64", "threads": 1},
        "analysis": {"effective_rank": 3.5, "top10_share": 0.9, "inference_seconds": 0.1, "beyond_accuracy": BEYOND},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_row_has_the_metrics_of_every_ranking(selected: Callable[..., Run], tested: Path) -> None:
    evaluate = load_params().evaluate.model_copy(update={"cutoffs": [20]})
    row = run_summary(selected(seed=1), tested, evaluate)
    assert (row["dataset"], row["adapter"], row["dim"], row["seed"], row["loss"]) == ("tiny", "base", 16, 1, "info_nce")
    assert row["HR@20"] == 2 / 4
    assert row["NDCG@20"] == pytest.approx((1 + 1 / np.log2(4)) / 4)
    assert (row["without_history_HR@20"], row["dot_HR@20"]) == (3 / 4, 1 / 4)
    assert (row["validation_NDCG@20"], row["best_epoch"], row["training_seconds"]) == (0.5, 2, 8.0)
    turned = run_summary(selected(seed=1), tested, evaluate.model_copy(update={"exclude_history": True}))
    assert (turned["HR@20"], turned["with_history_HR@20"]) == (3 / 4, 2 / 4)
    assert (row["coverage@20"], turned["coverage@20"]) == (0.9, 0.8)


def test_a_missing_file_is_one_line(selected: Callable[..., Run], tested: Path) -> None:
    (tested / "analysis.json").unlink()
    with pytest.raises(UserError, match=r"analysis\.json") as caught:
        run_summary(selected(), tested, load_params().evaluate)
    assert "\n" not in str(caught.value)
