"""Rows of the item table for items without interactions, from their texts, without training again."""

import sys
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor
from torch.func import functional_call

from common.errors import UserError
from common.section import Section
from common.words import plural
from models.core.adapter import Adapter, Spectrum
from pipeline.artifacts import SIDECAR, read_signed
from pipeline.data.findings import Finding, quoted
from pipeline.data.sources.files import Files, read_items
from pipeline.embedding.spectrum import coordinates
from pipeline.params import Encoder
from pipeline.runs import Run, preprocess_command, svd_command
from pipeline.texts import SHORTEST_TITLE, TITLE, check_fields, fill

Ids = Literal["mean", "zero"]
RULES = ("E", "U", "whitened", "semantics", "id_embedding")  # tensors with a row per item, each a method of `_Rows`


def new_rows(adapter: Adapter, options: dict[str, Any], spectrum: Spectrum, embeddings: Tensor, ids: Ids = "zero") -> Tensor:
    """Return the rows of T for M new items, (M, d). embeddings: (M, l), by the encoder of the spectrum.

    `table()` runs with every tensor that has a row per item replaced by rows for the new items. The text's rows are projected
    onto the spectrum, u = (e - mean) V / sigma; an item of the training would get the row that it has. Directions with small
    sigma amplify what is unlike the training's items, so a row of U, or of the whitened text, that is longer than the longest of
    the training's is shortened to that length.

    IDs have no text to come from: they are zero, or the mean of the trained ones. Zero ranks new items better
    (docs/results-details.md). Where IDs start from the text (LLMInit, LLM-ESR), they are what the item would have started from.

    options: the adapter's, of the run. Raises UserError for an adapter that knows items by their ID alone.
    """
    require_text(adapter)
    rows = _Rows(adapter.Config.parse(options, "options of the adapter"), spectrum, embeddings, ids)
    # `per_item` is empty in RLMRec, whose loss needs all items; its tensors have the usual names.
    tensors = {name: getattr(adapter, name) for name in adapter.per_item or RULES if hasattr(adapter, name)}
    name = type(adapter).__name__
    chosen = {}
    for tensor_name, known in tensors.items():
        make = getattr(rows, tensor_name, None)
        if make is None:
            raise UserError(f"adapter {name} has rows of items, {tensor_name}, for which there is no rule for new items")
        chosen[tensor_name] = make(known, adapter).to(known.dtype)
    with torch.inference_mode():
        made: Tensor = functional_call(adapter.eval(), chosen, ())
    if len(made) != len(embeddings):
        raise UserError(f"adapter {name} has rows of items for which there is no rule for new items")
    return made


def require_text(adapter: Adapter) -> None:
    """Raise UserError for an adapter that knows items by their ID alone, which has no row for a new item."""
    name = type(adapter).__name__
    with torch.inference_mode():
        has_text = name == "LLMInit" or adapter.semantic_table() is not None
    if not has_text:
        raise UserError(f"adapter {name} knows items by their ID alone: a new item has no row before it is trained again")


def text_ids(adapter: Adapter, options: dict[str, Any], spectrum: Spectrum, embeddings: Tensor) -> Tensor | None:
    """Return what the IDs of M items start from, where that is their text (LLMInit, LLM-ESR), (M, d_s); None for other adapters.

    As `new_rows`, with the columns that LLMInit chose for `adapter`.
    """
    if type(adapter).__name__ not in ("LLMInit", "LLMESR"):
        return None
    config = adapter.Config.parse(options, "options of the adapter")
    return _Rows(config, spectrum, embeddings, "mean").id_embedding(adapter.get_parameter("id_embedding"), adapter)


class _Rows:
    """Rows for new items of the tensors of RULES, one method a name. known: the trained rows, (N, …).

    config: of the adapter, so that an option that a run leaves out has its default.
    """

    def __init__(self, config: Section, spectrum: Spectrum, embeddings: Tensor, ids: Ids) -> None:
        self.config, self.spectrum, self.embeddings, self.ids = config, spectrum, embeddings, ids

    def E(self, known: Tensor, _: Adapter) -> Tensor:  # noqa: N802 - the tensor's name
        """Embeddings as `Spectrum.inputs` has them: what the kept directions hold, times the input scale."""
        rows = self.projected()
        return rows * rows.shape[1] ** 0.5 if getattr(self.config, "input_scale", None) == "sqrt_width" else rows

    def U(self, known: Tensor, _: Adapter) -> Tensor:  # noqa: N802 - the tensor's name
        used = self.spectrum.centred if getattr(self.config, "center", False) else self.spectrum
        return shortened(coordinates(used, self.embeddings), known)

    def whitened(self, known: Tensor, _: Adapter) -> Tensor:
        return self._whitened(known)

    def semantics(self, known: Tensor, _: Adapter) -> Tensor:
        return self._whitened(known)

    def id_embedding(self, known: Tensor, adapter: Adapter) -> Tensor:
        count = len(self.embeddings)
        name = type(adapter).__name__
        if name == "LLMInit":
            columns: Tensor = adapter.get_buffer("columns")
            start = self.projected()[:, columns]
            std: float | None = getattr(self.config, "std", None)
            if std is not None:
                start = start * (std / self.spectrum.embeddings()[:, columns].std())
            return start
        if name == "LLMESR":
            centred, width = self.spectrum.centred, known.shape[1]
            return coordinates(centred, self.embeddings)[:, :width] * centred.sigma[:width]
        return known.detach().mean(0).expand(count, -1) if self.ids == "mean" else known.new_zeros(count, known.shape[1])

    def projected(self) -> Tensor:
        """The part of the embeddings that the spectrum's directions hold, (M, l)."""
        spectrum = self.spectrum
        return (coordinates(spectrum, self.embeddings) * spectrum.sigma) @ spectrum.V.T + spectrum.mean

    def _whitened(self, known: Tensor) -> Tensor:
        """sqrt(N - 1) U_c, cut to the width of the known rows."""
        rows = coordinates(self.spectrum.centred, self.embeddings)[:, : known.shape[1]]
        return shortened(rows * (len(known) - 1) ** 0.5, known)


def shortened(rows: Tensor, known: Tensor) -> Tensor:
    """Rows whose length is above that of the longest known row, brought to that length. (M, r), (N, r) -> (M, r)"""
    longest = torch.linalg.vector_norm(known, dim=1).max()
    return rows * (longest / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)


def read_new_items(path: Path, run: Run) -> pl.DataFrame:
    """Return new items as item_id, title and text. path: a catalogue in any format, or a glob of its files.

    It has the template's columns, with our names, or those that the dataset's `item_columns` gave them. As in training, rows
    without an id or a title are dropped and repeated ones are taken once; a line on stderr says so.
    """
    items, findings = _read_catalogue(path, run)
    for finding in findings:
        if finding.count:
            print(f"{path}: {finding.text}", file=sys.stderr, flush=True)
    titled = pl.col("title").str.len_chars() >= SHORTEST_TITLE
    if untitled := items.filter(titled.not_().fill_null(value=True))["item_id"].sort().to_list():
        named = f"{plural(len(untitled), 'item')} ({quoted(untitled)})"
        text = f"dropped, because their title is missing or shorter than {SHORTEST_TITLE} characters"
        print(f"{path}: {text}: {named}", file=sys.stderr, flush=True)
        items = items.filter(titled)
    if items.is_empty():
        raise UserError(f"{path}: no row has an id and a title of at least {SHORTEST_TITLE} characters")
    template = _made_from(run).get("template", TITLE)
    check_fields(template, set(items.columns) - {"item_id"}, str(path))
    texts = [
        fill(template, {name: None if value is None else str(value) for name, value in item.items()})
        for item in items.iter_rows(named=True)
    ]
    return items.select("item_id", "title", text=pl.Series(texts, dtype=pl.String))


def _read_catalogue(path: Path, run: Run) -> tuple[pl.DataFrame, list[Finding]]:
    """Read the items by the names of the dataset's `item_columns`, or if a column is missing by ours; a place is tried last."""
    sidecar = read_signed(run.sequences / SIDECAR, preprocess_command(run.dataset))
    theirs = recorded_source(sidecar).get("item_columns") or {}
    attempts = [theirs, {}] if theirs else [{}]
    if isinstance(theirs.get("item_id"), int):  # every file has a first column, also one with our names
        attempts.reverse()
    refused = []
    for columns in attempts:
        findings: list[Finding] = []
        source = Files(kind="files", interactions=str(path), items=str(path.resolve()), item_columns=columns)
        try:
            return read_items(source, findings), findings
        except UserError as error:
            refused.append(error)
    raise refused[0]


def recorded_source(sidecar: dict[str, Any]) -> dict[str, Any]:
    """Return the source that sequences were made from, by their sidecar; {} if that does not say."""
    raw = sidecar.get("raw")
    source = raw.get("source") if isinstance(raw, dict) else None
    return source if isinstance(source, dict) else {}


def embed(texts: list[str], run: Run) -> Tensor:
    """Embed texts by the encoder of the run's spectrum, (M, l) float32. Raises UserError if that encoder is not the one here."""
    from pipeline.embedding.encoder import TextEncoder, encode

    made_from = _made_from(run)
    if "encoder" not in made_from:
        raise UserError(
            f"{run.spectrum / SIDECAR} does not say by which encoder it was made; {svd_command(run.dataset)} makes it again"
        )
    encoder = Encoder.parse(made_from["encoder"], str(run.spectrum / SIDECAR))
    if TextEncoder(encoder).identity != made_from.get("model"):
        raise UserError(f"encoder {encoder.model} is not the version that made {run.spectrum}; embed again: `dvc repro`")
    return torch.from_numpy(encode(texts, encoder)[0])


def _made_from(run: Run) -> dict[str, Any]:
    """What the embeddings of a run's spectrum were made from: encoder, template, identity of the model."""
    found: dict[str, Any] = read_signed(run.spectrum / SIDECAR, svd_command(run.dataset)).get("embeddings", {})
    return found
