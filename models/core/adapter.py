"""What every adapter is, and the spectrum that every adapter reads."""

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
    """Thin SVD of the item embeddings, E = U diag(sigma) V^T, and of the centred ones, E - 1 mean^T.

    U: (N, r), orthonormal columns. sigma: (r,), decreasing. V: (l, r). mean: (l,), zeros for the uncentred spectrum.
    load_centred and load_popularity: functions that load what few adapters need.
    """

    U: Tensor
    sigma: Tensor
    V: Tensor
    mean: Tensor
    load_centred: Callable[[], Spectrum] | None = None
    load_popularity: Callable[[], Tensor] | None = None

    @property
    def n_items(self) -> int:
        return self.U.shape[0]

    @property
    def rank(self) -> int:
        return self.U.shape[1]

    @cached_property
    def centred(self) -> Spectrum:
        """The spectrum of the centred embeddings, loaded when first asked for."""
        if self.load_centred is None:
            raise UserError("this spectrum was made without its centred twin; run `dvc repro` for the svd stage again")
        return self.load_centred()

    @cached_property
    def popularity(self) -> Tensor:
        """Training interactions of every item, (N,) int64, loaded when first asked for; UserError where they are not given."""
        if self.load_popularity is None:
            raise UserError("this spectrum was given without the items' training interactions, which the adapter's options need")
        return self.load_popularity()

    def require_rank(self, dim: int, adapter: str, parts: int = 1) -> None:
        """Raise UserError where dim / parts leading directions are asked for and fewer exist."""
        if dim > parts * self.rank:
            needs = "" if parts == 1 else ", half of which is to hold directions of the text"
            raise UserError(
                f"adapter {adapter}: dim is {dim}{needs}, but the embeddings have rank {self.rank}; "
                f"choose dim <= {parts * self.rank} or an encoder with a wider spectrum"
            )

    def embeddings(self) -> Tensor:
        """E = U diag(sigma) V^T + 1 mean^T, (N, l) float32."""
        return (self.U * self.sigma) @ self.V.T + self.mean

    def inputs(self, scale: InputScale) -> Tensor:
        """What a layer that learns from the embeddings reads, (N, l) float32: sqrt(l) E for `sqrt_width`, E for `unit`.

        Rows of E have length 1 and hence entries of root mean square 1 / sqrt(l), which leave such a layer almost blind at
        first; sqrt(l) E has entries of root mean square 1, as AlphaFuse's code scales the input of these methods.
        """
        embeddings = self.embeddings()
        return embeddings.mul_(embeddings.shape[1] ** 0.5) if scale == "sqrt_width" else embeddings


class Adapter(nn.Module):
    """Makes the item table T (N x d). Owns exactly N rows and knows nothing of padding, sequences or files.

    `table()` is called once per training step and once per evaluation; it is differentiable.
    """

    Config: ClassVar[type[Section]] = Section
    # Names of its tensors that have a row for every item, if row i of T follows from their rows i and nothing else of items.
    per_item: ClassVar[tuple[str, ...]] = ()

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__()
        self.n_items = n_items
        self.dim = dim

    def table(self) -> Tensor:
        """The item table T, (N, d)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        return self.table()

    def rows(self, items: Tensor, sparse: bool) -> Tensor:
        """Rows of T, made of their own alone. items: (k,) -> (k, d). Wants `per_item`.

        sparse: gradients of trained rows are sparse tensors of those rows, else dense ones of all.
        """
        mine = {name: getattr(self, name) for name in self.per_item if hasattr(self, name)}
        chosen = {name: F.embedding(items, tensor, sparse=sparse) for name, tensor in mine.items()}
        table: Tensor = functional_call(self, chosen, ())
        return table

    def auxiliary_loss(self) -> Tensor | None:
        """A scalar added to the recommendation loss, from what the last `table()` computed; None where there is none."""
        return None

    def prepare_mix(self, positions: int) -> None:
        """Make what `mix` needs. Called once, after construction; positions: the number P of token positions of the backbone."""

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        """Hook between item lookup and backbone. x: (T, d), rows of `layout`, zero at padding."""
        return x

    def semantic_table(self) -> Tensor | None:
        """The part of T that comes from the text, (N, d_s), for analyses; None for an adapter without text."""
        return None

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Parameters that weight decay must not touch."""
        return []

    def report(self) -> dict[str, Any]:
        """Learned scalars worth writing beside the metrics."""
        return {}


def id_embedding(n_items: int, dim: int, std: float) -> nn.Parameter:
    """A trainable ID table (N, d), drawn from N(0, std^2); zeros for std = 0."""
    return nn.Parameter(torch.randn(n_items, dim) * std)
