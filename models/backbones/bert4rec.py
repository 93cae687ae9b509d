"""BERT4Rec (Sun et al. 2019): a bidirectional transformer that predicts masked items."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.section import Section
from models.core.attention import Attention, check_heads
from models.core.backbone import Backbone
from models.core.dropout import dropout
from models.core.layout import Layout


class Block(nn.Module):
    """A post-norm block, as in BERT: x = LN(x + MHA(x)); x = LN(x + W_2 GELU(W_1 x)), with inner width 4 d."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.norm_attention = nn.LayerNorm(dim, eps=1e-12)
        self.inner = nn.Linear(dim, 4 * dim)
        self.outer = nn.Linear(4 * dim, dim)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = dropout

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the states of the layout's query rows, (W, d). x: (T, d), a row per token."""
        query = layout.queries(x)
        x = self.norm_attention(query + self._drop(self.attention(query, x, layout)))
        return self.norm_feed_forward(x + self._drop(self.outer(F.gelu(self.inner(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class BERT4Rec(Backbone):
    """Reads the history and one more position, which is [MASK] at inference; the state of a masked position predicts its item.

    In training, a share `last_only_share` of the samples has only its last item masked, as at inference. In the other samples,
    each item is masked with probability `mask_ratio`, and at least one is. A masked item always becomes [MASK].
    Source: the authors' gen_data_fin.py.
    """

    causal = False

    class Config(Section):
        blocks: int = Field(2, ge=1, description="transformer blocks")
        heads: int = Field(2, ge=1, description="attention heads; must divide dim")
        dropout: float = Field(0.2, ge=0, lt=1, description="on the input, attention weights and both sublayers")
        mask_ratio: float = Field(0.6, gt=0, lt=1, description="probability that an item of a sequence is masked")
        last_only_share: float = Field(0.5, ge=0, le=1, description="share of the samples of which only the last item is masked")
        passes_per_epoch: int = Field(
            4, ge=1, description="passes over all users in an epoch; a pass has about half of a causal backbone's targets"
        )

    def __init__(self, config: Config, n_items: int, dim: int, max_history: int) -> None:
        super().__init__(n_items, max_history + 1)
        check_heads("backbone bert4rec", config.heads, dim)
        self.mask_ratio = config.mask_ratio
        self.last_only_share = config.last_only_share
        self.passes_per_epoch = config.passes_per_epoch
        self.dropout = config.dropout
        self.mask_vector = nn.Parameter(torch.randn(dim) * 0.02)
        self.position = nn.Parameter(torch.randn(self.positions, dim) * 0.02)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = nn.ModuleList(Block(dim, config.heads, config.dropout) for _ in range(config.blocks))
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps=1e-12))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def training_examples(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        present = sequences != self.padding  # (B, P)
        draws = torch.rand(sequences.shape, generator=generator, device=sequences.device)
        lowest = draws.masked_fill(~present, 1).amin(dim=1, keepdim=True)  # (B, 1)
        masked = draws <= lowest.clamp(min=self.mask_ratio)  # the item with the lowest draw is always masked
        last_only = torch.rand(len(sequences), 1, generator=generator, device=sequences.device) < self.last_only_share
        last = torch.arange(self.positions, device=sequences.device) == self.positions - 1  # (P,)
        masked = torch.where(last_only, last, masked) & present
        return sequences.masked_fill(masked, self.padding + 1), sequences.masked_fill(~masked, self.padding)

    def inference_tokens(self, history: Tensor) -> Tensor:
        return F.pad(history, (0, 1), value=self.padding + 1)

    def forward(self, x: Tensor, layout: Layout, query_layout: Layout) -> Tensor:
        x = dropout(self.norm(x + self.position[layout.position]), self.dropout, self.training)
        for block in self.blocks[:-1]:
            x = block(x, layout)
        x = self.blocks[-1](x, query_layout)
        return self.head(x)
