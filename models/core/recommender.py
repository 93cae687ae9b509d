"""Backbone + adapter: what is trained, saved and asked for rankings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.core.adapter import Adapter
from models.core.backbone import Backbone
from models.core.layout import Layout
from models.core.loss import Loss, normalised

ROWS_FROM = 3  # items of the catalogue for each that a batch names, from which on their rows of T alone cost less than all


class Recommender(nn.Module):
    """Any adapter on any backbone. Scores are cosines between a state and the rows of T, in training and in ranking.

    sparse: gradients of rows of the catalogue are sparse tensors of the rows that a batch names (`sparse_adam`).
    """

    def __init__(self, adapter: Adapter, backbone: Backbone, objective: Loss, sparse: bool = False) -> None:
        super().__init__()
        self.sparse = sparse
        self.adapter = adapter
        self.backbone = backbone
        self.objective = objective

    def layout(self, tokens: Tensor) -> Layout:
        """Where the tokens stand, and what may look at what. tokens: (B, P)."""
        return Layout(tokens != self.adapter.n_items, self.backbone.causal)

    def states(self, tokens: Tensor, table: Tensor, layout: Layout, query_layout: Layout) -> Tensor:
        """States of the rows of `layout` that ask in `asking`, (W, d). tokens: (B, P); table: (N, d), as the adapter made it."""
        n_items = len(table)
        tokens = layout.rows(tokens)  # (T,)
        x = F.embedding(tokens.clamp(max=n_items - 1), table)  # (T, d)
        if self.backbone.mask_vector is not None:
            x = torch.where((tokens == n_items + 1).unsqueeze(1), self.backbone.mask_vector, x)
        if layout.packed:
            return self.backbone(self.adapter.mix(x, layout), layout, query_layout)
        present = (tokens != n_items).unsqueeze(1)
        return self.backbone(self.adapter.mix(x * present, layout) * present, layout, query_layout)

    def encode(self, tokens: Tensor, table: Tensor) -> Tensor:
        """States of every position, zero at padding. tokens: (B, P); table: (N, d) -> (B, P, d)."""
        layout = self.layout(tokens)
        return layout.padded(self.states(tokens, table, layout, layout))

    def loss(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Loss of a batch, a mean over its targets, and their number. sequences: (B, L + 1), left-padded with N."""
        n_items = self.adapter.n_items
        tokens, targets = self.backbone.training_examples(sequences, generator)
        layout = self.layout(tokens)
        targets = layout.rows(targets)  # (T,)
        query_layout = layout.select(targets != n_items)
        targets = query_layout.queries(targets)  # (W,)
        predicted = targets != n_items
        count = predicted.sum()
        weights = predicted / count.clamp(min=1)  # (W,)
        targets = targets.clamp(max=n_items - 1)
        negatives = self.objective.draw(targets, n_items, generator)  # (W, M)
        if negatives is not None and self.makes_rows(tokens.numel() + targets.numel() + negatives.numel()):
            table, tokens, targets, negatives = self._unique_items(tokens, targets, negatives)
        else:
            table = self.adapter.table()
        states = self.states(tokens, table, layout, query_layout)  # (W, d)
        loss = self.objective(states, table, targets, negatives, weights)
        extra = self.adapter.auxiliary_loss()
        return (loss if extra is None else loss + extra), count

    def makes_rows(self, named: int) -> bool:
        """Whether a step that names so many items makes their rows of T alone."""
        possible = bool(self.adapter.per_item) and self.objective.samples_negatives
        return possible and (self.sparse or self.adapter.n_items > ROWS_FROM * named)

    def _unique_items(self, tokens: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows of T that a batch names, (k, d), and the batch in terms of them; k is then padding, k + 1 [MASK]."""
        n_items = self.adapter.n_items
        all_items = torch.cat([part.flatten() for part in (tokens.clamp(max=n_items - 1), targets, negatives)])
        items, places = torch.unique(all_items, return_inverse=True)
        of_tokens, of_targets, of_negatives = places.split([tokens.numel(), targets.numel(), negatives.numel()])
        tokens = torch.where(tokens < n_items, of_tokens.view_as(tokens), tokens - n_items + len(items))
        return self.adapter.rows(items, self.sparse), tokens, of_targets, of_negatives.view_as(negatives)

    def next_item_states(self, history: Tensor, table: Tensor) -> Tensor:
        """L2-normalised states that predict what follows each history. history: (B, L) -> (B, d); zero without a history."""
        tokens = self.backbone.inference_tokens(history)
        layout = self.layout(tokens)
        last = layout.select(layout.position == tokens.shape[1] - 1)
        return normalised(last.padded(self.states(tokens, table, layout, last))[:, -1])

    def row_parameters(self) -> list[nn.Parameter]:
        """Trained tensors with a row for every item."""
        names = dict(self.adapter.named_parameters())
        return [names[name] for name in self.adapter.per_item if name in names]

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """Groups for the optimiser: what the adapter exempts is not decayed. Without `row_parameters`, where those are sparse."""
        exempt = {id(p) for p in self.adapter.undecayed_parameters()}
        elsewhere = {id(p) for p in self.row_parameters()} if self.sparse else set()
        decayed = [p for p in self.parameters() if id(p) not in exempt | elsewhere]
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": self.adapter.undecayed_parameters(), "weight_decay": 0.0},
        ]

    def n_trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
