"""SASRec (Kang & McAuley 2018): a causal transformer over the history."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.backbone import Backbone
from models.errors import UserError
from models.registry import Section


class Block(nn.Module):
    """Attention then feed-forward, with the original residual layout: q = LN(x); x = q + MHA(q, x, x)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(dim, eps=1e-8)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=1e-8)
        self.inner = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor, attention: Tensor) -> Tensor:
        query = self.norm_attention(x)
        x = query + self._drop(self._attend(query, x, attention))
        y = self.norm_feed_forward(x)
        return x + self._drop(self.outer(self._drop(F.relu(self.inner(y)))))

    def _attend(self, query: Tensor, x: Tensor, attention: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, h, P, d / h)

        key, value = self.key_value(x).chunk(2, dim=-1)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            split(self.query(query)), split(key), split(value), attn_mask=attention[:, None], dropout_p=dropout
        )
        return self.output(out.transpose(1, 2).flatten(-2))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class SASRec(Backbone):
    """Left-padded history, learned positions, `blocks` blocks, final layer norm; every position predicts its successor."""

    causal = True

    class Config(Section):
        blocks: int = Field(2, ge=1, description="transformer blocks")
        heads: int = Field(1, ge=1, description="attention heads; must divide dim")
        dropout: float = Field(0.2, ge=0, lt=1, description="on the input, attention weights and both sublayers")

    def __init__(self, config: Config, n_items: int, dim: int, max_history: int) -> None:
        super().__init__(n_items, max_history)
        if dim % config.heads:
            raise UserError(f"params.yaml: backbones.sasrec.heads: {config.heads} does not divide dim {dim}")
        self.position = nn.Parameter(torch.randn(max_history, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.dropout = config.dropout

    def training_examples(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = sequences[:, :-1]
        return tokens, sequences[:, 1:].masked_fill(tokens == self.padding, self.padding)

    def inference_tokens(self, history: Tensor) -> Tensor:
        return history

    def forward(self, x: Tensor, present: Tensor, attention: Tensor) -> Tensor:
        mask = present.unsqueeze(-1)
        x = F.dropout(x + self.position, self.dropout, self.training) * mask
        for block in self.blocks:
            x = block(x, attention) * mask
        return self.norm(x)
