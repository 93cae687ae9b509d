"""How well adapters rank items that they were not trained on: items are held out of training, and ranked by their texts.

The split is that of the dataset: by time if preprocessing says so.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from torch import Tensor

from common.errors import UserError
from models.core.loss import normalised
from pipeline.artifacts import SIDECAR, atomic_directory, open_array, read_json, read_signed, sha256, verify, write_json
from pipeline.data.interactions import split_by_time
from pipeline.embedding.spectrum import decompose
from pipeline.params import Params
from pipeline.runs import Run, embeddings_directory, preprocess_command, sequences_directory, spectrum_directory
from pipeline.serving.new_items import Ids, new_rows, require_text
from pipeline.serving.recommender import Recommender, padded
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import build, load_checkpoint, train_run
from pipeline.training.metrics import metrics_at
from pipeline.training.ranking import target_ranks
from pipeline.training.sequences import read_sequences

CUTOFFS = [10, 20]
LEAST = 3  # items of a user: one to train on, one for validation, one for the test


@dataclass
class Held:
    """Items held out of training, and the users whose test item is one of them.

    dataset: name of the sequences and the spectrum without these items, N of them. embeddings: (M, l), of the M held out; known:
    (N, l), of the others. histories: of the users, rows of the N kept items, oldest first; targets: which of the M, (U,). drawn:
    share and seed of the draw.
    """

    dataset: str
    embeddings: Tensor
    known: Tensor
    histories: list[np.ndarray]
    targets: Tensor
    drawn: dict[str, float] = field(default_factory=dict)


def hold_out(params: Params, share: float, seed: int) -> Held:
    """Draw a share of the items, and write the sequences and the spectrum of the others as dataset `<dataset>-cold`.

    Users keep their other items, if these are three or more. The spectrum is that of the kept items alone. Raises UserError if
    no user is left whose test item is held out, and if the embeddings are those of other items.
    """
    dataset, encoder = params.dataset, params.encoder
    source, vectors = sequences_directory(dataset), embeddings_directory(dataset, encoder)
    users, n_items = read_sequences(source)
    embed = f"`dvc repro data/dvc.yaml:embed@{dataset}`"
    embedded = verify(vectors, embed)
    if embedded.get("items") != sha256(source / "items.parquet"):
        raise UserError(f"{vectors} was computed for other items than those of {source}; run {embed}")
    embeddings = np.array(open_array(vectors / "embeddings.npy", "embed", "r"))
    held = np.zeros(n_items, dtype=bool)
    held[np.random.default_rng(seed).permutation(n_items)[: round(share * n_items)]] = True
    if not 0 < held.sum() < n_items - 1:
        raise UserError(f"--share {share} holds out {held.sum()} of {n_items} items of {dataset}; choose another")
    place = np.where(held, np.cumsum(held), np.cumsum(~held)) - 1  # among its own kind
    name = f"{dataset}-cold"
    of = read_signed(source / SIDECAR, preprocess_command(dataset))
    drawn = {"share": share, "seed": seed}
    made_from = {"dataset": name, "held_out": drawn, "of": of}
    cut = read_json(source / "statistics.json", preprocess_command(dataset)).get("split")
    items = pl.read_parquet(source / "items.parquet", glob=False).filter(~held)
    with atomic_directory(sequences_directory(name), made_from) as directory:
        _without(users, held, place, cut).write_parquet(directory / "sequences.parquet")
        items.write_parquet(directory / "items.parquet")
        write_json(directory / "statistics.json", {"items": items.height, "held_out": int(held.sum())})
    kept_vectors = embeddings_directory(name, encoder)
    made_from = embedded | {"dataset": name, "items": sha256(sequences_directory(name) / "items.parquet")}
    with atomic_directory(kept_vectors, made_from) as directory:
        np.save(directory / "embeddings.npy", embeddings[~held])
    with atomic_directory(spectrum_directory(name, encoder), {"embeddings": verify(kept_vectors, "the stage cold")}) as directory:
        decompose(kept_vectors / "embeddings.npy", directory, params.svd.rank_rtol)
    histories, targets = [], []
    for row, test in users.filter(pl.col("test").is_not_null()).select("items", "test").iter_rows():
        *before, target = row[: test + 1]
        history = np.array(before)[~held[before]]
        if held[target] and len(history):
            histories.append(place[history])
            targets.append(place[target])
    if not targets:
        raise UserError(
            f"{dataset}: no user's test item is among the {int(held.sum())} that are held out; choose a larger --share"
        )
    rows = torch.from_numpy(embeddings).float()
    return Held(name, rows[held], rows[~held], histories, torch.tensor(targets), drawn)


def _without(users: pl.DataFrame, held: np.ndarray, place: np.ndarray, cut: dict[str, int] | None) -> pl.DataFrame:
    """The users' other items, numbered anew, of users who keep LEAST of them. cut: of a split by time."""
    kept = pl.Series(~held)
    flat = users.explode("items", "timestamps").filter(
        pl.col("items").map_batches(lambda items: kept.gather(items), return_dtype=pl.Boolean)
    )
    numbers = pl.Series(place[flat["items"].to_numpy()].astype(np.int32))
    flat = flat.with_columns(items=numbers)
    left = flat.group_by("user_id", maintain_order=True).agg("items", "timestamps").filter(pl.col("items").list.len() >= LEAST)
    return split_by_time(left, cut) if cut else left


def check_adapters(params: Params, held: Held, adapters: list[str]) -> None:
    """Raise UserError, before anything is trained, for an adapter that knows items by their ID alone."""
    for adapter in adapters:
        run = Run.of(params, dataset=held.dataset, adapter=adapter)
        require_text(build(run, load_spectrum(run.spectrum)).adapter)


def measure(params: Params, held: Held, adapter: str) -> dict[str, dict[str, float]]:
    """Train an adapter on the kept items, unless that was done before, and rank the held-out items by rows from their texts.

    Returns the figures with IDs that are the `mean` of the trained ones, and with `zero`; under "" if the rows are the same,
    because there are no IDs, or such as start from the text. Raises UserError if another process has meanwhile held out other
    items of the dataset.
    """
    run = Run.of(params, dataset=held.dataset, adapter=adapter)
    made_from = read_signed(run.sequences / SIDECAR, "`python -m stages.cold`")
    if made_from.get("held_out") != held.drawn:
        raise UserError(f"{run.sequences} was replaced meanwhile, with other items held out; let one `python -m stages.cold` run")
    with run.lock():
        if not run.finished:
            train_run(run)
    torch.backends.cuda.matmul.allow_tf32 = False  # which a training with tf32 leaves on
    spectrum = load_spectrum(run.spectrum)
    model = load_checkpoint(run.scratch, run, spectrum)
    recommender = Recommender(
        model, pl.read_parquet(run.sequences / "items.parquet", glob=False), read_sequences(run.sequences)[0], run
    )
    states = recommender.states(held.histories)
    choices: tuple[Ids, Ids] = ("mean", "zero")
    rows = {ids: new_rows(model.adapter, run.settings["adapter"], spectrum, held.embeddings, ids) for ids in choices}
    named = {"": rows["mean"]} if torch.equal(rows["mean"], rows["zero"]) else rows
    found = {}
    for ids, new in named.items():
        table = torch.cat([recommender.table, new])
        found[ids] = figures(states, normalised(table) if recommender.similarity == "cosine" else table, held)
    return found


def nearest_text(params: Params, held: Held) -> dict[str, float]:
    """The baseline that learns nothing: the cosine of an item's embedding and the mean of those of the history's last items."""
    rows = normalised(torch.cat([held.known, held.embeddings]))
    histories = padded(held.histories, params.train.max_history, len(rows))
    present = torch.from_numpy(histories != len(rows)).float()
    last = rows[torch.from_numpy(histories).clamp(max=len(rows) - 1)] * present.unsqueeze(-1)
    return figures(normalised(last.sum(1)), rows, held)


def popularity_metrics(held: Held) -> dict[str, float]:
    """Return the expected metrics of popularity: held-out items have no interactions, so they tie, in random order at the end."""
    count = len(held.embeddings)
    ranks = np.arange(1, count + 1)
    among = metrics_at(ranks, CUTOFFS)
    return dict.fromkeys(among, 0.0) | {f"held_out_{name}": value for name, value in among.items()}


def figures(states: Tensor, rows: Tensor, held: Held) -> dict[str, float]:
    """HR and NDCG of the targets among all N + M items, and among the M held out. states: (U, d); rows: (N + M, d)."""
    first = len(rows) - len(held.embeddings)
    everywhere = target_ranks(states, rows, held.targets + first).numpy()
    among = target_ranks(states, rows[first:].contiguous(), held.targets).numpy()
    held_out = {f"held_out_{name}": value for name, value in metrics_at(among, CUTOFFS).items()}
    return metrics_at(everywhere, CUTOFFS) | held_out
