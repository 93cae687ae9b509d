"""How the text's vectors and trainable IDs become one item table."""

from typing import Literal

import torch
from torch import Tensor

from common.errors import UserError
from models.core.adapter import Adapter, id_embedding

Fusion = Literal["none", "id", "add", "concat"]


def half(dim: int, adapter: str) -> int:
    """The width of each part of a concatenation, d / 2; raise UserError for an odd d."""
    if dim % 2:
        raise UserError(
            f"adapter {adapter}: dim is {dim}, but a concatenation of IDs and text needs two halves; choose an even dim"
        )
    return dim // 2


class FusedAdapter(Adapter):
    """T from the text's E_s (N x d_s) and trainable IDs E_id.

    none: E_s. id: E_id, the text acts through the auxiliary loss only. add: E_id + E_s. concat: [E_id ; E_s], d / 2 each.
    """

    def __init__(self, name: str, fusion: Fusion, n_items: int, dim: int, id_std: float) -> None:
        super().__init__(n_items, dim)
        self.fusion = fusion
        self.semantic_dim = half(dim, name) if fusion == "concat" else dim
        # First of all that is drawn: adapters that share a seed share the start of their IDs with Base.
        if fusion != "none":
            self.id_embedding = id_embedding(n_items, self.semantic_dim, id_std)

    def project(self) -> Tensor:
        """E_s, (N, d_s)."""
        raise NotImplementedError

    def fuse(self, semantics: Tensor) -> Tensor:
        """T (N, d) from E_s (N, d_s)."""
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
