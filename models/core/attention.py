"""Multi-head attention within the sequences of a layout; backbones and LLM-ESR share it."""

import math

from torch import Tensor, nn

from common.errors import UserError
from models.core.dropout import dropout
from models.core.layout import Layout


def check_heads(owner: str, heads: int, dim: int) -> None:
    """Raise UserError where `heads` does not divide `dim`."""
    if dim % heads:
        raise UserError(f"{owner}: heads is {heads}, which does not divide dim {dim}; choose heads that do, or another dim")


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d / h)) v per head, then a linear map with a bias; `bias` is that of q, k and v."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.output = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, query: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """query: (T, d), the rows of `layout` that ask; x: (T, d), all of them; the layout says who sees whom -> as query."""
        key, value = self.key_value(x).chunk(2, dim=-1)
        scale = 1 / math.sqrt(query.shape[-1] / self.heads)
        scores = layout.scores(self.query(query) * scale, key, self.heads)
        weights = scores.masked_fill(~layout.visible, -math.inf).softmax(-1)
        return self.output(layout.weighted_values(dropout(weights, self.dropout, self.training), value))
