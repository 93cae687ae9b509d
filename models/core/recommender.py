"""The recommender: an adapter and a backbone, which are trained, saved and used for rankings as one model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.core.adapter import Adapter
from models.core.backbone import Backbone
from models.core.layout import Layout
from models.core.loss import Loss, normalised

ROWS_FROM = 3  # build only the batch's rows of T once the catalogue exceeds this multiple of the items that the batch references


class Recommender(nn.Module):
    """Combines any adapter with any backbone. Scores are cosines between a state and the rows of T; rankings may use dot
    products.

    objective: the loss. sparse: gradients of item rows are sparse tensors of the rows that a batch references (`sparse_adam`).
    """

    def __init__(self, adapter: Adapter, backbone: Backbone, objective: Loss, sparse: bool = False) -> None:
        super().__init__()
        self.sparse = sparse
        self.adapter = adapter
        self.backbone = backbone
        self.objective = objective

    def layout(self, tokens: Tensor) -> Layout:
        """Return the layout of a batch. tokens: (B, P) item ids, N at padding."""
        return Layout(tokens != self.adapter.n_items, self.backbone.causal)

    def states(self, tokens: Tensor, table: Tensor, layout: Layout, query_layout: Layout) -> Tensor:
        """Return the states of the query rows, (W, d).

        tokens: (B, P) item ids, N at padding, N + 1 for [MASK]; table: (N, d); layout: of the batch; query_layout: the same, or
        `layout.select(...)`.
        """
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
        """Return the states of every position, zero at padding. tokens: (B, P); table: (N, d). Returns (B, P, d)."""
        layout = self.layout(tokens)
        return layout.padded(self.states(tokens, table, layout, layout))

    def loss(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the mean loss over a batch's targets, plus the adapter's auxiliary loss, and the number of targets.

        Both are scalars. sequences: (B, L + 1) item ids, left-padded with N.

        Example, SASRec on a CPU with N = 6, L = 3: sequences are [[6, 6, 2, 4], [0, 1, 5, 3]].

        1. Tokens (B, P) are [[6, 6, 2], [0, 1, 5]], targets [[6, 6, 4], [1, 5, 3]]: every item predicts its successor, and a
           target of 6 means that there is none.
        2. The layout has T = 4 rows: items 2, 0, 1, 5. Their targets are 4, 1, 5, 3. All four are wanted, so W = 4.
           (BERT4Rec predicts masked items only: the rows without a target are keys, but no queries, of its last block.)
        3. Negatives (W, M) are drawn for each target.
        4. T is built: all N rows, or, in a large catalogue, only the rows of the referenced items. In the second case tokens,
           targets and negatives become indices into these rows.
        5. States (W, d) and T give the loss: the sum over targets of weight times loss, with weights of 1 / 4.

        On a GPU the layout has all B P = 6 rows. The two rows of padding take part with target N - 1 and weight 0, so that every
        step has the same shape.
        """
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
        if negatives is not None and self.builds_rows(tokens.numel() + targets.numel() + negatives.numel()):
            table, tokens, targets, negatives = self._unique_items(tokens, targets, negatives)
        else:
            table = self.adapter.table()
        states = self.states(tokens, table, layout, query_layout)  # (W, d)
        loss = self.objective(states, table, targets, negatives, weights)
        extra = self.adapter.auxiliary_loss()
        return (loss if extra is None else loss + extra), count

    def builds_rows(self, references: int) -> bool:
        """Whether a step that references so many items builds only their rows of T. references: with repetitions."""
        possible = bool(self.adapter.per_item) and self.objective.samples_negatives
        return possible and (self.sparse or self.adapter.n_items > ROWS_FROM * references)

    def _unique_items(self, tokens: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the rows of T that a batch references, (k, d), and tokens, targets and negatives as indices into these rows.

        In the returned tokens, k is padding and k + 1 is [MASK].
        """
        n_items = self.adapter.n_items
        all_items = torch.cat([part.flatten() for part in (tokens.clamp(max=n_items - 1), targets, negatives)])
        items, inverse = torch.unique(all_items, return_inverse=True)
        of_tokens, of_targets, of_negatives = inverse.split([tokens.numel(), targets.numel(), negatives.numel()])
        tokens = torch.where(tokens < n_items, of_tokens.view_as(tokens), tokens - n_items + len(items))
        return self.adapter.rows(items, self.sparse), tokens, of_targets, of_negatives.view_as(negatives)

    def next_item_states(self, history: Tensor, table: Tensor) -> Tensor:
        """Return L2-normalised states that predict the item after each history.

        history: (B, L) item ids, left-padded with N; table: (N, d). Returns (B, d). The state of an empty history is zero with a
        causal backbone; with BERT4Rec it is that of [MASK] alone.
        """
        tokens = self.backbone.inference_tokens(history)
        layout = self.layout(tokens)
        last = layout.select(layout.position == tokens.shape[1] - 1)
        states = last.padded(self.states(tokens, table, layout, last))[:, -1]
        return normalised(states * (tokens[:, -1:] != self.adapter.n_items))

    def row_parameters(self) -> list[nn.Parameter]:
        """Return the trained tensors that have one row per item."""
        names = dict(self.adapter.named_parameters())
        return [names[name] for name in self.adapter.per_item if name in names]

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """Return Adam's parameter groups: parameters that the adapter exempts have weight decay 0.

        If gradients of item rows are sparse, `row_parameters` are left out, because SparseAdam updates them.
        """
        exempt = {id(p) for p in self.adapter.undecayed_parameters()}
        elsewhere = {id(p) for p in self.row_parameters()} if self.sparse else set()
        decayed = [p for p in self.parameters() if id(p) not in exempt | elsewhere]
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": self.adapter.undecayed_parameters(), "weight_decay": 0.0},
        ]

    def n_trainable(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
