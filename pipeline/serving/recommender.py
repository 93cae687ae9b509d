"""Recommendations from a trained checkpoint, in Python: `Recommender.load().recommend([["B001", "B002"]], k=10)`."""

import copy
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError
from models.core.recommender import Recommender as Model
from pipeline.artifacts import SIDECAR, read_json, read_signed, verify
from pipeline.data.interactions import shuffle_key
from pipeline.data.sources import source_module
from pipeline.evaluation.best import Catalogue, best_items
from pipeline.params import Params, Similarity, load_params
from pipeline.runs import CHECKPOINT, Run, preprocess_command, raw_directory
from pipeline.serving.encoder import UserEncoder
from pipeline.serving.new_items import embed, new_rows, read_new_items, require_text
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import CONFIG, WEIGHTS, load_checkpoint
from pipeline.training.sequences import read_sequences

MADE_BY = "`dvc repro train`"
BUFFERS = "buffers.safetensors"  # of a retrained run: what its adapter took from the first catalogue
USERS = 4096  # whose states are computed together
MODEL, POPULARITY = "model", "popularity"  # values of the column `source`


class Recommender:
    """A trained model, its catalogue, and what is known of its users.

    Example: ten items for a history, and for somebody who has none. Rows are by request and rank; columns are `request` (the
    position in `histories`), `rank` from 1, `item_id`, `title`, `score`, and `source`: `model`, or `popularity` where the history
    is empty. Scores of the model are cosines (or dot products, if the run ranks by these), those of popularity are interactions.

        recommender = Recommender.load()
        table = recommender.recommend([["B0001", "B0002"], []], k=10)
    """

    def __init__(self, model: Model, items: pl.DataFrame, users: pl.DataFrame, run: Run) -> None:
        """items: item_id, title, row i of item i; users: user_id, items (oldest first), as the sequences artifact has them."""
        self.model = model.eval()
        self.encoder = UserEncoder(model)
        self.run = run
        self.item_ids: list[str] = items["item_id"].to_list()
        self.titles: list[str] = items["title"].to_list()
        self.users = users
        self.max_history: int = run.settings["train"]["max_history"]
        self.similarity: Similarity = run.settings["evaluate"]["similarity"]
        with torch.inference_mode():
            self.table: Tensor = model.adapter.table().detach().contiguous()
        if not bool(torch.isfinite(self.table).all()):
            raise UserError("the item table holds NaN or infinity; lower train.learning_rate and train again")
        self.interactions = np.bincount(users["items"].explode().to_numpy(), minlength=len(items))  # (N,)
        self._index = {item: i for i, item in enumerate(self.item_ids)}

    def with_items(self, items: pl.DataFrame, embeddings: Tensor) -> "Recommender":
        """The recommender with more items, which have no interactions, at the end of its catalogue; nothing is trained.

        items: item_id, title; embeddings: (M, l), by the encoder of the spectrum. Raises UserError for an item that is there
        already, and for an adapter that knows items by their ID alone.
        """
        if known := next((item for item in items["item_id"] if item in self._index), None):
            raise UserError(f"new items: {known!r} is in the catalogue already")
        options = self.run.settings["adapter"]
        rows = new_rows(self.model.adapter, options, load_spectrum(self.run.spectrum), embeddings)
        wider = copy.copy(self)
        of_catalogue = ("_catalogue", "_ids_and_titles", "_logged", "_had")
        wider.__dict__ = {name: value for name, value in vars(self).items() if name not in of_catalogue}
        wider.item_ids = [*self.item_ids, *items["item_id"]]
        wider.titles = [*self.titles, *items["title"]]
        wider.table = torch.cat([self.table, rows])
        wider.interactions = np.concatenate([self.interactions, np.zeros(items.height, dtype=np.int64)])
        wider._index = {item: i for i, item in enumerate(wider.item_ids)}
        return wider

    def with_new_items(self, path: Path) -> "Recommender":
        """`with_items` for a catalogue, as `read_new_items` reads it, embedded by the run's encoder.

        The file may be the whole catalogue: items that the training knew keep their rows. If no item is new, a line says so.
        """
        items = read_new_items(path, self.run)
        require_text(self.model.adapter)  # before all texts are embedded
        new = items.filter(~pl.col("item_id").is_in(self.item_ids))
        if new.is_empty():
            print(f"new items: {path} has none; the training knew all {items.height:,}", file=sys.stderr)
            return self
        return self.with_items(new, embed(new["text"].to_list(), self.run))

    @classmethod
    def load(cls, directory: Path | str = CHECKPOINT) -> "Recommender":
        """Load the checkpoint that `dvc repro` leaves, with the sequences and the spectrum that it was trained from.

        Raises UserError if a file is missing or damaged, and if data or code have changed since the training.
        """
        directory = Path(directory)
        files = verify(directory, MADE_BY, [CONFIG, WEIGHTS])["files"]
        config = read_json(directory / CONFIG, MADE_BY)
        names = [field.name for field in fields(Run)]
        if not isinstance(config, dict) or not {*names, "fingerprint"} <= set(config):
            raise UserError(f"{directory / CONFIG} is not a run's; {MADE_BY} makes it again")
        run = Run(**{name: config[name] for name in names})
        if run.fingerprint != config["fingerprint"]:
            retrained = run.dataset.endswith("-retrained")
            again = "`python -m stages.retrain`, from the same checkpoint," if retrained else "`dvc repro`"
            raise UserError(
                f"{directory} was trained from other data than {run.sequences} and {run.spectrum}, or by other code; "
                f"{again} trains it again"
            )
        model = load_checkpoint(directory, run, load_spectrum(run.spectrum))
        if BUFFERS in files:
            verify(directory, MADE_BY, [BUFFERS])
            for name, tensor in load_file(directory / BUFFERS).items():
                model.adapter.get_buffer(name).copy_(tensor)
        users, _ = read_sequences(run.sequences)
        return cls(model, pl.read_parquet(run.sequences / "items.parquet", glob=False), users, run)

    def recommend(
        self,
        histories: Iterable[Sequence[str]],
        k: int = 10,
        exclude_history: bool = True,
        allow: Collection[str] | None = None,
        deny: Collection[str] = (),
        had: Sequence[Collection[str]] | None = None,
        skip_unknown: bool = False,
    ) -> pl.DataFrame:
        """Return the k best items after every history, as described above.

        histories: item ids, oldest first; the last `max_history` decide, and all are left out by `exclude_history`. allow: the
        only items that are recommended; deny: items that are not; had: for each history, items that are left out with it, as
        `had_by` returns them; skip_unknown: pass over items of a history, `allow` and `deny` that the catalogue lacks. A request
        has fewer rows than k if no more items are left.
        Order is that of float64 scores; ties go to the item that comes first in items.parquet.

        Raises UserError for another item that the catalogue lacks, and for a k that is not between 1 and the number of items.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(self.item_ids):
            raise UserError(f"k is {k!r}; choose a whole number from 1 to {len(self.item_ids)}, the number of items")
        given = [self.indices(history, f"history {i}", skip_unknown) for i, history in enumerate(histories)]
        shown = self._shown(allow, deny, skip_unknown)
        left_out = [history if exclude_history else history[:0] for history in given]
        if had is not None:
            more = [self.indices(items, f"had {i}") for i, items in enumerate(had)]
            left_out = [np.union1d(history, items) for history, items in zip(left_out, more, strict=True)]
        empty = np.array([not len(history) for history in given], dtype=bool)
        items = np.full((len(given), k), -1)
        scores = np.full((len(given), k), -np.inf)
        if len(shown):
            known = (~empty).nonzero()[0]
            items[known], scores[known] = self._by_model([given[i] for i in known], k, shown, [left_out[i] for i in known])
            popular = shown[np.argsort(-self.interactions[shown], kind="stable")]
            for row in empty.nonzero()[0]:
                first = popular[: k + len(left_out[row])]
                best = first[~np.isin(first, left_out[row])][:k]
                items[row, : len(best)] = best
                scores[row, : len(best)] = self.interactions[best]
        return self._frame(items, scores, empty)

    def history_of(self, user_id: str) -> list[str]:
        """The items of a user, oldest first; of one whom the core filter dropped, those of the log that the catalogue has.

        With new items, those of the log that the catalogue has for every user, if the log is here.

        Empty if the log does not know the user, or knows no such item of this user; also, after a line that says so, if the
        user is not in the sequences and the log is not here.
        """
        row = self._rows.get(user_id)
        if row is not None and not (self._wider and self._has_log):
            return [self.item_ids[i] for i in self.users["items"][row]]
        if not self._has_log:
            return []
        return self._logged.get(user_id, [])

    def had_by(self, user_id: str) -> list[str]:
        """All items of the catalogue that the user had, in no order: the history, and what the filters left out of it.

        They are read from the log, for a history lacks clicks without a time too. Without the log, a history that is shorter than
        `cap` counts as all. Raises UserError if the log is needed and is not here.
        """
        history = self.history_of(user_id)
        options = self._preprocessing
        short = not self._wider and len(history) < options["cap"] and options.get("min_rating") is None
        return history if short and not self._raw_is_here else [*history, *self._had.get(user_id, [])]

    def indices(self, items: Iterable[str], where: str, skip_unknown: bool = False) -> np.ndarray:
        """Row numbers of items, (n,) int64. Raises UserError, which starts with `where`, for an unknown one unless skipped."""
        if isinstance(items, str):
            raise UserError(f"{where}: expected a list of item ids, found the text {items!r}")
        found = []
        for item in items:
            index = self._index.get(item) if isinstance(item, str) else None
            if index is not None:
                found.append(index)
            elif not (skip_unknown and isinstance(item, str)):
                known = self.run.sequences / "items.parquet"
                raise UserError(f"{where}: unknown item {item!r}; items are those of {known}, skip_unknown passes over others")
        return np.array(found, dtype=np.int64)

    @torch.inference_mode()
    def states(self, histories: Sequence[np.ndarray]) -> Tensor:
        """States that predict the item after each history, (U, d), of length 1. histories: row numbers, oldest first."""
        made = []
        for start in range(0, len(histories), USERS):
            history = torch.from_numpy(padded(histories[start : start + USERS], self.max_history, len(self.item_ids)))
            made.append(self.encoder(history, self.table))
        return torch.cat(made) if made else self.table[:0]

    def _by_model(
        self, histories: list[np.ndarray], k: int, shown: np.ndarray, had: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the items `shown` (sorted row numbers), less those in `had`. (U, k) each"""
        whole = len(shown) == len(self.item_ids)
        catalogue = self._catalogue if whole else Catalogue(self.table[torch.from_numpy(shown)], self.similarity)
        if not whole:
            place = np.full(len(self.item_ids), -1)
            place[shown] = np.arange(len(shown))
            had = [places[places >= 0] for places in (place[items] for items in had)]
        items, scores = best_items(self.states(histories), catalogue, k, had)
        return np.where(items < 0, -1, shown[np.maximum(items, 0)]), scores

    def _shown(self, allow: Collection[str] | None, deny: Collection[str], skip_unknown: bool) -> np.ndarray:
        shown = np.ones(len(self.item_ids), dtype=bool)
        if allow is not None:
            shown[:] = False
            shown[self.indices(allow, "allow", skip_unknown)] = True
        shown[self.indices(deny, "deny", skip_unknown)] = False
        return shown.nonzero()[0]

    def _frame(self, items: np.ndarray, scores: np.ndarray, empty: np.ndarray) -> pl.DataFrame:
        request, column = (items >= 0).nonzero()
        chosen = items[request, column]
        return pl.DataFrame(
            {
                "request": request,
                "rank": column + 1,
                "item_id": self._ids_and_titles[0].gather(chosen),
                "title": self._ids_and_titles[1].gather(chosen),
                "score": scores[request, column],
                "source": np.where(empty, POPULARITY, MODEL)[request].astype(str).tolist(),
            },
            schema_overrides={"request": pl.UInt32, "rank": pl.UInt32, "source": pl.String},
        )

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self.table, self.similarity)

    @cached_property
    def _ids_and_titles(self) -> tuple[pl.Series, pl.Series]:
        return pl.Series(self.item_ids, dtype=pl.String), pl.Series(self.titles, dtype=pl.String)

    @property
    def _wider(self) -> bool:
        """Whether the catalogue has items that the training did not know."""
        return len(self.item_ids) > self.model.adapter.n_items

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users["user_id"])}

    @cached_property
    def _sidecar(self) -> dict[str, Any]:
        """What the sequences were built from. Those of a retrained run name the dataset of the log too."""
        return read_signed(self.run.sequences / SIDECAR, preprocess_command(self.run.dataset))

    @cached_property
    def _preprocessing(self) -> dict[str, Any]:
        """The options that the sequences were built with, whatever params.yaml says today: `cap`, `ties`, `min_rating`, …."""
        recorded: dict[str, Any] | None = self._sidecar.get("preprocess")
        if recorded is None:
            params, dataset = self._origin
            recorded = params.of_preprocessing(dataset)["preprocess"]
        return recorded

    @cached_property
    def _has_log(self) -> bool:
        """Whether the log is here; if it is not, a line says what that means."""
        if not self._raw_is_here:
            print(f"{self._raw} is not here, so users whom the core filter dropped count as unknown", file=sys.stderr, flush=True)
        return self._raw_is_here

    @property
    def _raw(self) -> Path:
        return raw_directory(self._sidecar["dataset"])

    @property
    def _raw_is_here(self) -> bool:
        return (self._raw / SIDECAR).is_file()

    @cached_property
    def _origin(self) -> tuple[Params, str]:
        """Today's parameters, and the dataset of the log."""
        params, dataset = load_params(), self._sidecar["dataset"]
        if dataset not in params.sources:
            raise UserError(f"params.yaml has no sources.{dataset}, which names the log; put its section back")
        return params, dataset

    def _log(self, every_rating: bool = False) -> pl.DataFrame:
        """The rows of the log with a user and an item of the catalogue. Raises UserError if the log is not here.

        Columns: user_id, item_id, timestamp, which may be null.
        """
        params, dataset = self._origin
        source, raw = params.sources[dataset], raw_directory(dataset)
        if hasattr(source, "min_rating"):
            source = source.model_copy(update={"min_rating": None if every_rating else self._preprocessing.get("min_rating")})
        verify(raw, f"`dvc repro data/dvc.yaml:download@{dataset}`")
        log = source_module(source.kind).read(source, raw).interactions.drop_nulls(["user_id", "item_id"])
        return log.filter(pl.col("item_id").is_in(self.item_ids))

    @cached_property
    def _had(self) -> dict[str, list[str]]:
        """The items of every user of the log, whatever their rating."""
        return dict(self._log(every_rating=True).group_by("user_id").agg(pl.col("item_id").unique()).iter_rows())

    @cached_property
    def _logged(self) -> dict[str, list[str]]:
        """Histories of the users whom the core filter dropped, or with new items of all, read from the log at first use."""
        ties = self._preprocessing["ties"]
        log = self._log().drop_nulls("timestamp")
        if not self._wider:
            log = log.filter(~pl.col("user_id").is_in(self.users["user_id"].implode()))
        # As the preprocess stage does: an exact duplicate counts once, equal times are ordered by `ties`.
        log = log.unique(["user_id", "item_id", "timestamp"], keep="first", maintain_order=True).with_row_index("row")
        key: dict[str, Any] = {"file": pl.col("row"), "item": pl.col("item_id")}
        if ties == "shuffled":
            keys = [shuffle_key(user, item) for user, item in log.select("user_id", "item_id").iter_rows()]
            key["shuffled"] = pl.Series(keys, dtype=pl.UInt64)
        log = log.with_columns(tie=key[ties]).sort("user_id", "timestamp", "tie")
        return dict(log.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


def padded(histories: Sequence[np.ndarray], width: int, padding: int) -> np.ndarray:
    """The last `width` items of every history, padded on the left. (U, width) int64"""
    made = np.full((len(histories), width), padding, dtype=np.int64)
    for row, history in zip(made, histories, strict=True):
        last = history[-width:]
        row[width - len(last) :] = last
    return made
