"""HSTU (Zhai et al. 2024): gated pointwise attention without softmax, here without timestamps."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.section import Section
from models.core.attention import check_heads
from models.core.backbone import CausalBackbone
from models.core.dropout import dropout
from models.core.layout import Layout


class Block(nn.Module):
    """[u, v, q, k] = SiLU(LN(x) W); a = SiLU(q k^T + b_{i-j}) / n, zero where hidden; y = W_o Dropout(u * LN(a v)) + x.

    n is the maximal length of histories, not the length of this one. LN has no parameters, and q k^T is not divided by sqrt(d).
    Source: research/modeling/sequential/hstu.py of the authors' generative-recommenders.
    """

    def __init__(self, dim: int, heads: int, dropout: float, positions: int, relative_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.weight = nn.Parameter(torch.randn(dim, 4 * dim) * 0.02)  # W (d, 4 d)
        self.output = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.output.weight)
        self.bias = nn.Parameter(torch.randn(2 * positions - 1) * 0.02) if relative_bias else None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the states of the layout's query rows, (W, d). x: (T, d), a row per token."""
        dim = x.shape[1]
        u, v, q, k = F.silu(F.layer_norm(x, (dim,), eps=1e-6) @ self.weight).chunk(4, dim=-1)  # (T, d) each
        scores = layout.scores(layout.queries(q), k, self.heads)
        if self.bias is not None:
            scores = scores + layout.by_distance(self.bias)
        weights = F.silu(scores) / scores.shape[-1] * layout.visible
        gated = layout.queries(u) * F.layer_norm(layout.weighted_values(weights, v), (dim,), eps=1e-6)
        return layout.queries(x) + self.output(dropout(gated, self.dropout, self.training))


class HSTU(CausalBackbone):
    """Adds learned positions to sqrt(d) x and applies `blocks` blocks; every position predicts the next item.

    Without the factor sqrt(d), positions with an initial standard deviation of 1 / sqrt(d) would dominate IDs with one of 0.02.
    It is that of the official code (research/modeling/sequential/input_features_preprocessors.py).
    """

    class Config(Section):
        blocks: int = Field(2, ge=1, description="HSTU blocks")
        heads: int = Field(1, ge=1, description="attention heads; must divide dim")
        dropout: float = Field(0.2, ge=0, lt=1, description="on the input and on the gated output of every block")
        relative_bias: bool = Field(True, description="a learned bias by distance on the attention scores")
        scale_input: bool = Field(True, description="multiply the item vectors by sqrt(dim) before positions are added")

    def __init__(self, config: Config, n_items: int, dim: int, max_history: int) -> None:
        super().__init__(n_items, max_history)
        check_heads("backbone hstu", config.heads, dim)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(max_history, dim), std=dim**-0.5))
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.dropout, max_history, config.relative_bias) for _ in range(config.blocks)
        )
        self.dropout = config.dropout
        self.scale = dim**0.5 if config.scale_input else 1.0

    def forward(self, x: Tensor, layout: Layout, query_layout: Layout) -> Tensor:
        x = dropout(x * self.scale + self.position[layout.position], self.dropout, self.training)
        for block in self.blocks[:-1]:
            x = block(x, layout)
        x = self.blocks[-1](x, query_layout)
        return x
