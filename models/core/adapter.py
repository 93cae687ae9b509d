"""The base class of adapters, and the spectrum of the item embeddings, which every adapter reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from common.errors import UserError
from common.section import Section
from models.core.layout import Layout

InputScale = Literal["sqrt_width", "unit"]


@dataclass
class Spectrum:
    """Thin SVD of the item embeddings, E = U diag(sigma) V^T + 1 mean^T (SpecTran, Eq. 3).

    U: (N, r), orthonormal columns (in a retrained dataset: projections of the items, see pipeline/serving/retrain.py). sigma:
    (r,), decreasing. V: (l, r). mean: (l,), zeros for the plain spectrum, the mean of E's rows for the centred one. load_centred
    and load_popularity: functions that load what only some adapters need.
    """

    U: Tensor
    sigma: Tensor
    V: Tensor
    mean: Tensor
    load_centred: Callable[[], Spectrum] | None = None
    load_popularity: Callable[[], Tensor] | None = None

    @property
    def n_items(self) -> int:
        """Return the number of items N."""
        return self.U.shape[0]

    @property
    def rank(self) -> int:
        """Return the number of directions r."""
        return self.U.shape[1]

    @cached_property
    def centred(self) -> Spectrum:
        """The spectrum of the centred embeddings, loaded at first use. Raises UserError if the artifact has none."""
        if self.load_centred is None:
            raise UserError("this spectrum has no centred part; run the svd stage again: `dvc repro`")
        return self.load_centred()

    @cached_property
    def popularity(self) -> Tensor:
        """Training interactions of every item, (N,) int64, loaded at first use. Raises UserError if they were not given."""
        if self.load_popularity is None:
            raise UserError("the adapter's options need the items' training interactions, which this spectrum was given without")
        return self.load_popularity()

    def require_rank(self, dim: int, adapter: str, parts: int = 1) -> None:
        """Raise UserError if an adapter needs dim / parts leading directions and fewer exist. adapter: its name."""
        if dim > parts * self.rank:
            needs = "" if parts == 1 else ", half of which is to hold directions of the text"
            raise UserError(
                f"adapter {adapter}: dim is {dim}{needs}, but the embeddings have rank {self.rank}; "
                f"choose dim <= {parts * self.rank} or an encoder with a wider spectrum"
            )

    def embeddings(self) -> Tensor:
        """Return E = U diag(sigma) V^T + 1 mean^T, (N, l) float32."""
        return (self.U * self.sigma) @ self.V.T + self.mean

    def inputs(self, scale: InputScale) -> Tensor:
        """Return the input of a learned layer, (N, l) float32: sqrt(l) E for `sqrt_width`, E for `unit`.

        Rows of E have length 1 (unless the encoder's `normalise` is false), so their entries have a root mean square of 1 /
        sqrt(l), too small for a freshly initialised layer. Entries of sqrt(l) E have a root mean square of 1, about as in
        AlphaFuse's code, which multiplies by 40.
        """
        embeddings = self.embeddings()
        return embeddings.mul_(embeddings.shape[1] ** 0.5) if scale == "sqrt_width" else embeddings


class Adapter(nn.Module):
    """Builds the item table T (N, d) from the spectrum. T has exactly N rows; padding is handled by the recommender.

    A subclass defines `Config`, whose fields are its section of `params.yaml`, a constructor (config, spectrum, dim), and
    `table()`, which is differentiable and called once per training step and once per ranking or analysis. All other methods have
    defaults.
    """

    Config: ClassVar[type[Section]] = Section
    # The names of the tensors with one row per item, if row i of T depends only on their rows i; otherwise empty.
    per_item: ClassVar[tuple[str, ...]] = ()

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__()
        self.n_items = n_items
        self.dim = dim

    def table(self) -> Tensor:
        """Return the item table T, (N, d)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        return self.table()

    def rows(self, items: Tensor, sparse: bool) -> Tensor:
        """Return the rows of T for some items without building the others, (k, d). items: (k,) ids. Requires `per_item`.

        Runs `table()` with every tensor of `per_item` replaced by its rows for these items. sparse: whether the gradients of
        trained tensors are sparse, with these rows only.
        """
        tensors = {name: getattr(self, name) for name in self.per_item if hasattr(self, name)}
        chosen = {name: F.embedding(items, tensor, sparse=sparse) for name, tensor in tensors.items()}
        table: Tensor = functional_call(self, chosen, ())
        return table

    def auxiliary_loss(self) -> Tensor | None:
        """Return a scalar to add to the recommendation loss, computed from the last `table()`; None if the adapter has none."""
        return None

    def prepare_mix(self, positions: int) -> None:
        """Create parameters that `mix` needs. Called once, after construction. positions: token positions P of the backbone."""

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        """Hook between item lookup and backbone: return what the backbone reads, (T, d). x: (T, d), rows of `layout`."""
        return x

    def semantic_table(self) -> Tensor | None:
        """Return the part of T that comes from the text, (N, d_s), for analyses; None if there is no separate part."""
        return None

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are exempt from weight decay."""
        return []

    def report(self) -> dict[str, Any]:
        """Return learned scalars and lists to store with the metrics; values must be JSON."""
        return {}


def id_embedding(n_items: int, dim: int, std: float) -> nn.Parameter:
    """Return a trainable ID table (N, d), drawn from N(0, std^2); zeros for std = 0."""
    return nn.Parameter(torch.randn(n_items, dim) * std)
