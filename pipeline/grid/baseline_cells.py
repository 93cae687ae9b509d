"""The trivial baselines of a dataset on the split and by the ranking protocol of the trained runs, as an artifact."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from pipeline.artifacts import atomic_directory, read_json, verify
from pipeline.evaluation.beyond import LISTED, beyond_accuracy, buyers
from pipeline.grid.baselines import Baseline, baselines
from pipeline.grid.tables import read_csv_table
from pipeline.params import Evaluate
from pipeline.runs import sequences_directory, spectrum_directory, svd_command
from pipeline.training.batches import items_before_test, load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import MONITOR
from pipeline.training.metrics import NEW_ITEMS, headline, metrics, metrics_by_ranking

FOLDER = Path("grid/baselines")
HELD = 16_000_000  # scores that are made together


def directory_of(dataset: str) -> Path:
    return FOLDER / dataset


def command(dataset: str) -> str:
    """What makes the baselines of a dataset, for messages."""
    return f"`dvc repro grid/dvc.yaml:baselines@{dataset}`"


def write_baselines(
    dataset: str, encoder: str, max_history: int, evaluate: Evaluate, check_unchanged: Callable[[], None] = lambda: None
) -> str:
    """Rank with every method as validation chooses its setting; write grid/baselines/<dataset>; return its figures in one line.

    metrics.csv has a row per method: dataset, adapter (its name), encoder, setting, metrics as in a cell, seconds of the ranking.
    ranks.parquet: adapter, user_id, rank, rank_without_history.

    check_unchanged: called before anything is written; may raise UserError, as `runs.watched` does.
    """
    sequences_path, spectrum_path = sequences_directory(dataset), spectrum_directory(dataset, encoder)
    verify(spectrum_path, svd_command(dataset))
    cpu = torch.device("cpu")
    sequences = load_sequences(sequences_path, max_history, cpu)
    longest = int(max(1, pl.read_parquet(sequences_path / "sequences.parquet", glob=False)["items"].list.len().to_numpy().max()))
    train = load_sequences(sequences_path, longest, cpu).train.numpy()  # every training item, not the last ones alone
    spectrum = load_spectrum(spectrum_path)
    text = (spectrum.U * spectrum.sigma).numpy()  # a rotation of the embeddings, so all cosines are theirs
    valid = (sequences.valid_history.numpy(), sequences.valid_target.numpy())
    test = (sequences.test_history.numpy(), sequences.test_target.numpy())
    before = items_before_test(sequences_path)
    had = buyers(sequences_path)
    chosen: dict[str, tuple[float, Baseline]] = {}
    for baseline in baselines(train, sequences.n_items, text):
        quality = metrics(ranks(baseline, *valid)[0], [20])[MONITOR]
        if baseline.name not in chosen or quality > chosen[baseline.name][0]:
            chosen[baseline.name] = (quality, baseline)
    rows: list[dict[str, Any]] = []
    frames = []
    for name, (quality, baseline) in chosen.items():
        start = time.perf_counter()
        found = ranks(baseline, *test, lambda users: before(torch.from_numpy(users)).numpy())
        seconds = time.perf_counter() - start
        new_alone = headline(evaluate.exclude_history) == NEW_ITEMS
        listed = lists(baseline, test[0], (lambda users: before(torch.from_numpy(users)).numpy()) if new_alone else None)
        columns = {"rank": found[0], "rank_without_history": found[1]}
        frame = pl.DataFrame(columns).cast(pl.UInt16 if sequences.n_items < 2**16 else pl.UInt32)
        frames.append(
            frame.select(pl.lit(name).alias("adapter"), pl.Series("user_id", sequences.user_ids), "rank", "rank_without_history")
        )
        by_ranking = metrics_by_ranking(frame, evaluate.cutoffs, evaluate.exclude_history)
        rows.append(
            {"dataset": dataset, "adapter": name, "encoder": encoder, "setting": baseline.setting}
            | by_ranking.pop("")
            | beyond_accuracy(listed, *had, spectrum)
            | {f"validation_{MONITOR}": quality, "inference_seconds": seconds}
            | {f"{ranking}_{metric}": value for ranking, values in by_ranking.items() for metric, value in values.items()}
        )
    made_from = {
        "dataset": dataset,
        "sequences": read_json(sequences_path / "sidecar.json", "preprocess")["checksum"],
        "spectrum": read_json(spectrum_path / "sidecar.json", "svd")["checksum"],
        "max_history": max_history,
        "evaluate": evaluate.model_dump(include={"cutoffs", "exclude_history"}),
    }
    check_unchanged()
    with atomic_directory(directory_of(dataset), made_from) as directory:
        pl.DataFrame(rows).write_csv(directory / "metrics.csv")
        pl.concat(frames).write_parquet(directory / "ranks.parquet")
    metric = f"NDCG@{max(evaluate.cutoffs)}"
    return f"{dataset}: " + ", ".join(f"{row['adapter']} {metric} {row[metric]:.4f}" for row in rows)


def ranks(
    baseline: Baseline, history: np.ndarray, targets: np.ndarray, excluded: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """The rank of every user's target among all items, and among those that are not excluded. (2, U) int64

    history: (U, L), padded with N; targets: (U,); excluded: users (B,) -> items (B, H), padded with N. As for trained runs, ties
    go to the lower item, and the target itself always takes part.
    """
    made = np.empty((2, len(targets)), dtype=np.int64)
    n_items = baseline.scores(history[:1]).shape[1]
    for users in np.array_split(np.arange(len(targets)), max(1, -(-len(targets) * n_items // HELD))):
        scores = baseline.scores(history[users])
        made[:, users] = rank_rows(scores, targets[users], excluded(users) if excluded else None)
    return made


def lists(baseline: Baseline, history: np.ndarray, excluded: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """The LISTED best items of every user, without those that are excluded, in no order. (U, K) int64; see `ranks`."""
    n_items = baseline.scores(history[:1]).shape[1]
    found = []
    for users in np.array_split(np.arange(len(history)), max(1, -(-len(history) * n_items // HELD))):
        scores = np.pad(np.array(baseline.scores(history[users]), dtype=np.float32), ((0, 0), (0, 1)))  # the last: padding
        if excluded:
            scores[np.arange(len(users))[:, None], excluded(users)] = -np.inf
        found.append(top_rows(scores[:, :-1], LISTED))
    return np.concatenate(found)


def top_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` highest items of every row; of equal ones, the lower. (B, N) -> (B, K), ascending; -1 in the place of -inf.

    >>> top_rows(np.array([[0.5, 0.9, 0.5, 0.5], [0.1, -np.inf, -np.inf, -np.inf]]), 2).tolist()
    [[0, 1], [0, -1]]
    """
    count = min(count, scores.shape[1])
    least = -np.partition(-scores, count - 1, axis=1)[:, count - 1 : count]  # the last score that is in the list
    above, equal = scores > least, scores == least
    taken = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdims=True)))
    items = taken.nonzero()[1].reshape(len(scores), count)
    return np.where(np.take_along_axis(scores, items, 1) == -np.inf, -1, items)


def rank_rows(scores: np.ndarray, targets: np.ndarray, excluded: np.ndarray | None = None) -> np.ndarray:
    """1 + #{j: s_j > s_t} + #{j < t: s_j = s_t}, with all items and without the excluded ones. (B, N), (B,), (B, H) -> (2, B)

    >>> rank_rows(np.array([[0.5, 0.9, 0.5, 0.5]]), np.array([2]), np.array([[1, 4]])).tolist()
    [[3], [2]]
    """
    rows = np.arange(len(targets))
    of_target = scores[rows, targets][:, None]
    lower = np.arange(scores.shape[1]) < targets[:, None]
    ahead = (scores > of_target) | ((scores == of_target) & lower)
    everything = 1 + ahead.sum(1)
    if excluded is not None:
        padded = np.hstack([ahead, np.zeros((len(ahead), 1), dtype=bool)])
        out = np.zeros_like(padded)
        out[rows[:, None], excluded] = True
        ahead = (padded & ~out)[:, :-1]
    return np.stack([everything, 1 + ahead.sum(1)])


def read_baselines(datasets: list[str]) -> pl.DataFrame:
    """Rows of metrics.csv of the datasets that have baselines; empty without any. Raises UserError for a damaged artifact."""
    frames = []
    for dataset in datasets:
        directory = directory_of(dataset)
        if directory.is_dir():
            verify(directory, command(dataset))
            frames.append(read_csv_table(directory / "metrics.csv"))
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()
