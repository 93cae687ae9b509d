"""The fusion of semantic vectors and trainable IDs into one item table."""

from typing import Literal

import torch
from torch import Tensor

from common.errors import UserError
from models.core.adapter import Adapter, id_embedding

Fusion = Literal["none", "id", "add", "concat"]


def half(dim: int, adapter: str) -> int:
    """Return the width of each part of a concatenation, d / 2. Raises UserError for an odd d. adapter: for the message."""
    if dim % 2:
        raise UserError(
            f"adapter {adapter}: dim is {dim}, but a concatenation of IDs and text needs two halves; choose an even dim"
        )
    return dim // 2


class FusedAdapter(Adapter):
    """An adapter that combines semantic vectors E_s (N, d_s) with trainable IDs E_id (SpecTran, section 2.2.3).

    none: T = E_s. id: T = E_id; only the auxiliary loss uses the text. add: T = E_id + E_s. concat: T = [E_id ; E_s], each with
    d_s = d / 2 columns; raises UserError for an odd d. A subclass defines `project`.
    """

    def __init__(self, name: str, fusion: Fusion, n_items: int, dim: int, id_std: float) -> None:
        super().__init__(n_items, dim)
        self.fusion = fusion
        self.semantic_dim = half(dim, name) if fusion == "concat" else dim
        # The IDs are drawn first, so that with the same seed and id_std, `add` and `id` have the same initial IDs as Base.
        if fusion != "none":
            self.id_embedding = id_embedding(n_items, self.semantic_dim, id_std)

    def project(self) -> Tensor:
        """Return E_s, (N, d_s)."""
        raise NotImplementedError

    def fuse(self, semantics: Tensor) -> Tensor:
        """Return T (N, d) from E_s (N, d_s)."""
        if self.fusion == "none":
            return semantics
        if self.fusion == "id":
            return self.id_embedding
        if self.fusion == "add":
            return self.id_embedding + semantics
        return torch.cat([self.id_embedding, semantics], dim=1)

    def table(self) -> Tensor:
        return self.fuse(self.project())

    def semantic_table(self) -> Tensor | None:
        return None if self.fusion == "id" else self.project()
