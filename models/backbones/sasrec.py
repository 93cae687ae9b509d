"""SASRec (Kang & McAuley 2018): a causal transformer on the history."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.section import Section
from models.core.attention import Attention, check_heads
from models.core.backbone import CausalBackbone
from models.core.dropout import dropout
from models.core.layout import Layout

FeedForwardResidual = Literal["normalised", "plain"]


class Block(nn.Module):
    """q = LN(x); x = q + MHA(q, x, x); then a feed-forward layer, whose residual is an option.

    normalised: y = LN(x); x = y + FFN(y), as in the original code. plain: x = x + FFN(LN(x)). The residual of the attention is
    always the normalised query, as in the original code, which we read in pmixer/SASRec.pytorch (python/model.py). Pre-norm, x +
    MHA(LN(x)), had a better validation for the ID-only model on Office. With few steps per epoch, however, it can stop early on a
    plateau that is close to ranking by popularity (docs/results-archive.md).
    """

    def __init__(self, dim: int, heads: int, dropout: float, feed_forward_residual: FeedForwardResidual) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=1e-8)
        self.attention = Attention(dim, heads, dropout)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=1e-8)
        self.inner = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, dim)
        self.dropout = dropout
        self.feed_forward_residual = feed_forward_residual

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the states of the layout's query rows, (W, d). x: (T, d), a row per token."""
        query = self.norm_attention(layout.queries(x))
        x = query + self._drop(self.attention(query, x, layout))
        y = self.norm_feed_forward(x)
        residual = y if self.feed_forward_residual == "normalised" else x
        return residual + self._drop(self.outer(self._drop(self.inner(y).relu())))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class SASRec(CausalBackbone):
    """Adds learned positions, applies `blocks` blocks and a final layer norm; every position predicts the next item."""

    class Config(Section):
        blocks: int = Field(2, ge=1, description="transformer blocks")
        heads: int = Field(1, ge=1, description="attention heads; must divide dim")
        dropout: float = Field(0.2, ge=0, lt=1, description="on the input, attention weights and both sublayers")
        feed_forward_residual: FeedForwardResidual = Field(
            "normalised",
            description="what the feed-forward layer adds to: its normalised input, as in the original code, or the plain one",
        )

    def __init__(self, config: Config, n_items: int, dim: int, max_history: int) -> None:
        super().__init__(n_items, max_history)
        check_heads("backbone sasrec", config.heads, dim)
        self.position = nn.Parameter(torch.randn(max_history, dim) * 0.02)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.dropout, config.feed_forward_residual) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.dropout = config.dropout

    def forward(self, x: Tensor, layout: Layout, query_layout: Layout) -> Tensor:
        x = dropout(x + self.position[layout.position], self.dropout, self.training)
        for block in self.blocks[:-1]:
            x = block(x, layout)
        x = self.blocks[-1](x, query_layout)
        return self.norm(x)
