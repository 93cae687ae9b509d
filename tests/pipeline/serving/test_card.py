"""The model card of a package."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.serving.card import model_card
from pipeline.serving.recommender import Recommender

pytestmark = pytest.mark.xdist_group("serving")


def test_the_card_has_the_runs_metrics_and_settings(packaged: Path, trained_project: Path, checkpoint: Recommender) -> None:
    card = (packaged / "README.md").read_text()
    metrics = json.loads((trained_project / "metrics/evaluation.json").read_text())
    for name in ("HR@10", "HR@20", "NDCG@10", "NDCG@20"):
        assert f"| {name} | {metrics[name]:.4f} ± " in card
    assert "| train.temperature | 0.07 |" in card
    assert checkpoint.run.fingerprint in card


def test_intervals_are_those_of_a_mean_over_users() -> None:
    """Of 100 users a quarter is a hit: the standard error of a share is sqrt(p (1 - p) / (n - 1))."""
    from pipeline.serving.card import _interval, _per_user

    hits = _per_user(np.array([1] * 25 + [50] * 75), "HR", 10)
    assert _interval(hits) == f"0.2500 ± {1.96 * (0.25 * 0.75 / 99) ** 0.5:.4f}"
    assert _per_user(np.array([3, 11]), "NDCG", 10).tolist() == [0.5, 0.0]


def test_the_card_of_a_run_that_was_not_tested_says_so(trained: Path) -> None:
    recommender = Recommender.load()
    other = Path("data/runs/evaluate-selected.json")
    other.write_text(other.read_text().replace('"seed": 0', '"seed": 1'))
    assert "No test of this run was found" in model_card(recommender)
    other.unlink()
    assert "No test of this run was found" in model_card(recommender)


@pytest.mark.parametrize(
    ("model", "licence"),
    [("Qwen/Qwen3-Embedding-0.6B", "Apache-2.0"), ("meta-llama/Meta-Llama-3-8B", "Meta Llama 3"), ("own/encoder", "not known")],
)
def test_the_card_names_the_encoders_licence_where_it_is_known(trained: Path, model: str, licence: str) -> None:
    from pipeline.artifacts import read_signed, write_signed

    recommender = Recommender.load()
    sidecar = recommender.run.spectrum / "sidecar.json"
    content = read_signed(sidecar, "")
    content["embeddings"]["encoder"] = {"model": model, "revision": "abc"}
    write_signed(sidecar, content)
    card = model_card(recommender)
    assert f"{model}, revision abc." in card
    assert f"Licence: {licence}" in card
