"""What every backbone is. Tokens: item ids 0..N-1; N is padding, N+1 is [MASK]."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from common.section import Section
from models.core.layout import Layout


class Backbone(nn.Module):
    """From item vectors to states. Knows neither adapters nor losses.

    `positions` is the number P of token positions; the state that predicts the next item is always that of the last one.
    `passes_per_epoch` is how often an epoch goes over all users. A backbone whose tokens include [MASK] owns its vector, (d,).
    """

    Config: ClassVar[type[Section]] = Section
    causal: ClassVar[bool]
    passes_per_epoch: int = 1
    mask_vector: nn.Parameter | None

    def __init__(self, n_items: int, positions: int) -> None:
        super().__init__()
        self.padding = n_items
        self.positions = positions
        self.register_parameter("mask_vector", None)

    def training_examples(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, L + 1) left-padded item ids -> tokens (B, P) and targets (B, P), padding where there is no target."""
        raise NotImplementedError

    def inference_tokens(self, history: Tensor) -> Tensor:
        """(B, L) left-padded item ids, most recent last -> tokens (B, P)."""
        raise NotImplementedError

    def forward(self, x: Tensor, layout: Layout, query_layout: Layout) -> Tensor:
        """x: (T, d), rows of `layout`, zero at padding -> states of the rows that ask in `asking`, (W, d)."""
        raise NotImplementedError


class CausalBackbone(Backbone):
    """Every position predicts its successor and sees nothing after itself."""

    causal = True

    def training_examples(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = sequences[:, :-1]
        return tokens, sequences[:, 1:].masked_fill(tokens == self.padding, self.padding)

    def inference_tokens(self, history: Tensor) -> Tensor:
        return history
