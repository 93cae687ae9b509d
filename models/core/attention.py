"""Multi-head attention within the sequences of a layout, for backbones and LLM-ESR."""

import math

from torch import Tensor, nn

from common.errors import UserError
from models.core.dropout import dropout
from models.core.layout import Layout


def check_heads(owner: str, heads: int, dim: int) -> None:
    """Raise UserError if `heads` does not divide `dim`. owner: the backbone or adapter with this option, for the message."""
    if dim % heads:
        raise UserError(f"{owner}: heads is {heads}, which does not divide dim {dim}; choose heads that do, or another dim")


class Attention(nn.Module):
    """Multi-head attention: softmax(q k^T / sqrt(d / h)) v per head, then a linear layer. bias: whether q, k and v have one."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.output = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, query: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """Return the attended values of the query rows, shaped as `query`.

        query: (W, d), the query rows of `layout`; x: (T, d), all rows, for keys and values; `layout.visible` is the mask.
        """
        key, value = self.key_value(x).chunk(2, dim=-1)
        scale = 1 / math.sqrt(query.shape[-1] / self.heads)
        scores = layout.scores(self.query(query) * scale, key, self.heads)
        weights = scores.masked_fill(~layout.visible, -math.inf).softmax(-1)
        return self.output(layout.weighted_values(dropout(weights, self.dropout, self.training), value))
