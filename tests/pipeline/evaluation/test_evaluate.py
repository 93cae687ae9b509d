"""Test ranks, compared with sorted scores; figures of the item table; checkpoints of other runs."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from common.errors import UserError
from models.core.recommender import Recommender
from pipeline.evaluation import evaluate as evaluation
from pipeline.evaluation.evaluate import analyse
from pipeline.grid.execution import evaluated, trained
from pipeline.runs import Run
from pipeline.training import loop as training
from pipeline.training.batches import load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.metrics import metrics_at

CPU = torch.device("cpu")
SetParams = Callable[[dict[str, Any]], None]


def test_the_test_set_is_ranked_for_every_user_with_the_kept_weights(selected: Callable[..., Run]) -> None:
    run = selected()
    ranks = pl.read_parquet(evaluated(run) / "ranks.parquet")
    users = pl.read_parquet(run.sequences / "sequences.parquet")
    assert ranks["user_id"].equals(users["user_id"])
    n_items = pl.read_parquet(run.sequences / "items.parquet").height
    assert ranks["rank"].is_between(1, n_items).all()
    sequences = load_sequences(run.sequences, 10, CPU)
    model = training.load_checkpoint(run.scratch, run, load_spectrum(run.spectrum)).eval()
    with torch.no_grad():
        table = model.adapter.table()
        scores = model.next_item_states(sequences.test_history, table) @ torch.nn.functional.normalize(table, dim=-1).T
    better = (scores > scores.gather(1, sequences.test_target[:, None])).sum(1)
    assert (ranks["rank"].to_numpy() == 1 + better.numpy()).all(), "no ties in a trained model"


def brute_force(scores: np.ndarray, targets: list[int], without: list[list[int]] | None = None) -> list[int]:
    """Return each target's rank by sorting (score descending, item ascending), without the items of `without`."""
    ranks = []
    for user, (row, target) in enumerate(zip(scores, targets, strict=True)):
        order = np.lexsort((np.arange(len(row)), -row)).tolist()
        gone = set(without[user]) - {target} if without else set()
        ranks.append([item for item in order if item not in gone].index(target) + 1)
    return ranks


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_every_ranking_is_that_of_sorted_scores_and_validation_is_by_the_chosen_similarity(
    selected: Callable[..., Run], set_params: SetParams, similarity: str
) -> None:
    """Computed in float64 from the weights. Items have very different lengths, so that the similarities give different ranks."""
    set_params({"evaluate.similarity": similarity, "adapters.base.id_std": 1.0, "train.epochs": 2})
    run = selected()
    ranks = pl.read_parquet(evaluated(run) / "ranks.parquet")
    other = {"cosine": "dot", "dot": "cosine"}[similarity]
    assert ranks.columns == ["user_id", "rank", "rank_without_history", f"rank_{other}", "top", "top_without_history"]
    model = training.load_checkpoint(run.scratch, run, load_spectrum(run.spectrum)).eval()
    users = pl.read_parquet(run.sequences / "sequences.parquet")["items"].to_list()
    table = model.adapter.table().detach()

    def scores(held_out: int) -> dict[str, np.ndarray]:
        rows = [items[:-held_out][-run.settings["train"]["max_history"] :] for items in users]
        padded = torch.tensor([[len(table)] * (run.settings["train"]["max_history"] - len(row)) + row for row in rows])
        states, items = model.next_item_states(padded, table).detach().double().numpy(), table.double().numpy()
        return {"dot": states @ items.T, "cosine": states @ (items / np.linalg.norm(items, axis=1, keepdims=True)).T}

    test, targets = scores(1), [items[-1] for items in users]
    assert ranks["rank"].to_list() == brute_force(test[similarity], targets)
    assert ranks[f"rank_{other}"].to_list() == brute_force(test[other], targets)
    assert ranks["rank_without_history"].to_list() == brute_force(test[similarity], targets, [items[:-1] for items in users])
    assert not ranks["rank"].equals(ranks[f"rank_{other}"], check_dtypes=False)
    validated = json.loads((run.scratch / "training.json").read_text())["validation"]
    expected = brute_force(scores(2)[similarity], [items[-2] for items in users])
    assert validated == pytest.approx(metrics_at(np.array(expected), [10, 20]))


@pytest.mark.parametrize(("choice", "name"), [({"adapter": "spectran"}, "adapter"), ({"dim": 8}, "dim"), ({"seed": 5}, "seed")])
def test_the_checkpoint_of_another_run_is_refused(selected: Callable[..., Run], choice: dict[str, Any], name: str) -> None:
    directory = trained(selected())
    with pytest.raises(UserError, match=f"holds a checkpoint with {name} .*`dvc repro` trains it again") as caught:
        evaluation.evaluate_checkpoint(directory, selected(**choice))
    assert "\n" not in str(caught.value)


def test_alphafuse_semantics_are_flat(make: Callable[..., Recommender]) -> None:
    """Standardised components have equal variances, so the effective rank is d and m components have a share of m / d."""
    analysis = analyse(make("alphafuse", dim=16))
    assert analysis["effective_rank"] == pytest.approx(16, rel=1e-4)
    assert analysis["top10_share"] == pytest.approx(10 / 16, rel=1e-4)
    np.testing.assert_allclose(analysis["semantic_table"]["cumulative_share"], np.arange(1, 17) / 16, atol=1e-5)


def test_an_adapter_without_text_is_shown_by_its_whole_table(make: Callable[..., Recommender]) -> None:
    analysis = analyse(make("base"))
    assert analysis["semantic_table"] is None
    assert analysis["effective_rank"] == analysis["table"]["effective_rank"]
    assert analysis["trainable_parameters"] == make("base").n_trainable()
