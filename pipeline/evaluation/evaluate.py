"""Tests a run: ranks all items for every user with the weights of the best validation, and analyses the adapter."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from models.core.recommender import Recommender
from pipeline.artifacts import added_files, atomic_file, write_json
from pipeline.device import select_device
from pipeline.evaluation.best import Catalogue, best_items
from pipeline.evaluation.beyond import LISTED, beyond_accuracy, buyers
from pipeline.evaluation.spectral import covariance_spectrum, cumulative_share, effective_rank, top_share
from pipeline.params import Similarity
from pipeline.runs import Run, evaluation_code
from pipeline.training.batches import items_before_test, load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import evaluate_ranks, load_checkpoint, use_deterministic_kernels
from pipeline.training.metrics import ALL_ITEMS, NEW_ITEMS

HEADLINES, TOPS = (ALL_ITEMS, NEW_ITEMS), ("top", "top_without_history")
USERS = 4096  # whose lists are made together


@dataclass
class Evaluation:
    """The result of a test. seconds: of reading the histories and of the first ranking; analysis: see `analyse`.

    ranks has a row per user: `user_id`; `rank`, among all items by the run's similarity; `rank_without_history`, among the items
    outside the user's history; and `rank_dot` (`rank_cosine` if the run uses the dot product), by the other similarity. `top` and
    `top_without_history` are the LISTED best items by the run's similarity, best first, -1 where there are no more.
    """

    ranks: pl.DataFrame
    seconds: float
    analysis: dict[str, Any]

    @property
    def spectrum(self) -> pl.DataFrame:
        """The curve of Figure 1: component, from 1, and cumulative_share, of the text's part of T (of T if there is none)."""
        share = (self.analysis["semantic_table"] or self.analysis["table"])["cumulative_share"]
        return pl.DataFrame({"component": range(1, len(share) + 1), "cumulative_share": share})


def evaluate_checkpoint(directory: Path, run: Run) -> Evaluation:
    """Test and analyse the trained run in `directory`. Raises UserError if the checkpoint belongs to another run."""
    device = select_device()
    use_deterministic_kernels()
    sequences = load_sequences(run.sequences, run.settings["train"]["max_history"], device)
    similarity: Similarity = run.settings["evaluate"]["similarity"]
    other: Similarity = "dot" if similarity == "cosine" else "cosine"
    spectrum = load_spectrum(run.spectrum, device)
    model = load_checkpoint(directory, run, spectrum).to(device)
    test = (model, sequences.test_history, sequences.test_target)
    start = time.perf_counter()
    before = items_before_test(run.sequences)
    ranks = evaluate_ranks(*test, similarity, before)
    seconds = time.perf_counter() - start
    columns = {"rank": ranks[0], "rank_without_history": ranks[1], f"rank_{other}": evaluate_ranks(*test, other)}
    frame = pl.DataFrame(columns).cast(pl.UInt16 if sequences.n_items < 2**16 else pl.UInt32)
    lists = best_lists(model, sequences.test_history, similarity, before)
    made_of = (*buyers(run.sequences), spectrum)
    beyond = {column: beyond_accuracy(each, *made_of) for column, each in zip(HEADLINES, lists, strict=True)}
    tops = [pl.Series(name, each.astype(np.int32)) for name, each in zip(TOPS, lists, strict=True)]
    frame = frame.insert_column(0, pl.Series("user_id", sequences.user_ids)).hstack(tops)
    return Evaluation(frame, seconds, analyse(model) | {"beyond_accuracy": beyond})


@torch.inference_mode()
def best_lists(
    model: Recommender, history: torch.Tensor, similarity: Similarity, before: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the LISTED best items after every history, and those that the user has not had. (U, K) int64 each

    history: (U, L); before: from `items_before_test`.
    """
    model.eval()
    table = model.adapter.table()
    catalogue, count = Catalogue(table.cpu(), similarity), min(LISTED, len(table))
    lists, new = [], []
    for users in torch.arange(len(history), device=history.device).split(USERS):
        states = model.next_item_states(history[users], table).cpu()
        had = before(users).cpu().numpy()
        lists.append(best_items(states, catalogue, count)[0])
        new.append(best_items(states, catalogue, count, [row[row < len(table)] for row in had])[0])
    return np.concatenate(lists), np.concatenate(new)


@torch.no_grad()
def analyse(model: Recommender) -> dict[str, Any]:
    """Return the model's size, its adapter's learned scalars, and spectral figures of T and of the text's part of T.

    `semantic_table` is None if there is no separate text part. `effective_rank` and `top10_share` at the top level are those of
    the text's part, or of T if there is none.
    """
    model.eval()
    table = _spectral_figures(model.adapter.table())
    semantics = model.adapter.semantic_table()
    text = None if semantics is None else _spectral_figures(semantics)
    shown = text or table
    return {
        "effective_rank": shown["effective_rank"],
        "top10_share": shown["top10_share"],
        "trainable_parameters": model.n_trainable(),
        "learned": model.adapter.report(),
        "table": table,
        "semantic_table": text,
    }


def _spectral_figures(table: torch.Tensor) -> dict[str, Any]:
    values = covariance_spectrum(table)
    return {
        "effective_rank": effective_rank(values),
        "top10_share": top_share(values, 10),
        "cumulative_share": cumulative_share(values).tolist(),
    }


def evaluate_run(run: Run) -> None:
    """Test a finished run; write spectrum.csv, ranks.parquet and, last, analysis.json to its directory in scratch."""
    evaluation = evaluate_checkpoint(run.scratch, run)
    about = {"code": evaluation_code(), "inference_seconds": evaluation.seconds}
    with added_files(run.scratch, ["spectrum.csv", "ranks.parquet", "analysis.json"], "the same command"):
        with atomic_file(run.scratch / "spectrum.csv") as partial:
            evaluation.spectrum.write_csv(partial)
        with atomic_file(run.scratch / "ranks.parquet") as partial:
            evaluation.ranks.write_parquet(partial)
        write_json(run.scratch / "analysis.json", about | evaluation.analysis)
