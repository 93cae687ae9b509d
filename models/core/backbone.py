"""The base class of backbones. Tokens are item ids 0 to N - 1; N is padding, N + 1 is [MASK]."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from common.section import Section
from models.core.layout import Layout


class Backbone(nn.Module):
    """Turns a sequence of item vectors into states. It does not depend on adapters and losses.

    A subclass defines `Config`, whose fields are its section of `params.yaml`, a constructor (config, n_items, dim, max_history),
    and the three methods below. `positions` is the number P of token positions; the state of the last one predicts the next item.
    `passes_per_epoch` is how often an epoch goes over all users. `mask_vector`, (d,), is the vector of [MASK], or None.
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
        """Return tokens (B, P) and targets (B, P), N where a position has no target. sequences: (B, L + 1), left-padded."""
        raise NotImplementedError

    def inference_tokens(self, history: Tensor) -> Tensor:
        """Return the tokens (B, P) whose last position predicts the next item. history: (B, L), left-padded, most recent last."""
        raise NotImplementedError

    def forward(self, x: Tensor, layout: Layout, query_layout: Layout) -> Tensor:
        """Return the states of the query rows, (W, d).

        x: (T, d), rows of `layout`, zero at padding; query_layout: `layout`, or a selection of it for the last block.
        """
        raise NotImplementedError


class CausalBackbone(Backbone):
    """A backbone in which every position predicts the next item and attends only to itself and earlier positions; P = L."""

    causal = True

    def training_examples(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = sequences[:, :-1]
        return tokens, sequences[:, 1:].masked_fill(tokens == self.padding, self.padding)

    def inference_tokens(self, history: Tensor) -> Tensor:
        return history
