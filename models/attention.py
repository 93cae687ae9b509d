"""Multi-head attention over the keys that a mask shows; backbones and LLM-ESR share it."""

from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError


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

    def forward(self, query: Tensor, x: Tensor, visible: Tensor) -> Tensor:
        """query, x: (B, P, d); visible: (B, P, P), True where the query (rows) may look at the key (columns) -> (B, P, d)."""

        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, h, P, d / h)

        key, value = self.key_value(x).chunk(2, dim=-1)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            split(self.query(query)), split(key), split(value), attn_mask=visible[:, None], dropout_p=dropout
        )
        return self.output(out.transpose(1, 2).flatten(-2))
