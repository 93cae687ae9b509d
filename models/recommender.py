"""Backbone + adapter: what is trained, saved and asked for rankings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.adapters import ADAPTERS
from models.adapters.adapter import Adapter, Spectrum
from models.backbones import BACKBONES
from models.backbones.backbone import Backbone
from models.layout import Layout
from models.losses import Objective, normalised
from models.registry import load_class


class Recommender(nn.Module):
    """Any adapter on any backbone. Scores are cosines between a state and the rows of T, in training and in ranking."""

    def __init__(self, adapter: Adapter, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self.adapter = adapter
        self.backbone = backbone
        self.objective = objective

    def layout(self, tokens: Tensor) -> Layout:
        """Where the tokens stand, and what may look at what. tokens: (B, P)."""
        return Layout(tokens != self.adapter.n_items, self.backbone.causal)

    def states(self, tokens: Tensor, table: Tensor, layout: Layout, asking: Layout) -> Tensor:
        """States of the rows of `layout` that ask in `asking`, (W, d). tokens: (B, P); table: (N, d), as the adapter made it."""
        n_items = len(table)
        tokens = layout.rows(tokens)  # (T,)
        x = F.embedding(tokens.clamp(max=n_items - 1), table)  # (T, d)
        if self.backbone.mask_vector is not None:
            x = torch.where((tokens == n_items + 1).unsqueeze(1), self.backbone.mask_vector, x)
        if layout.packed:
            return self.backbone(self.adapter.mix(x, layout), layout, asking)
        present = (tokens != n_items).unsqueeze(1)
        return self.backbone(self.adapter.mix(x * present, layout) * present, layout, asking)

    def encode(self, tokens: Tensor, table: Tensor) -> Tensor:
        """States of every position, zero at padding. tokens: (B, P); table: (N, d) -> (B, P, d)."""
        layout = self.layout(tokens)
        return layout.padded(self.states(tokens, table, layout, layout))

    def loss(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Loss of a batch, a mean over its targets, and their number. sequences: (B, L + 1), left-padded with N."""
        table = self.adapter.table()
        tokens, targets = self.backbone.training_examples(sequences, generator)
        layout = self.layout(tokens)
        targets = layout.rows(targets)  # (T,)
        asking = layout.narrowed(targets != len(table))
        states, targets = self.states(tokens, table, layout, asking), asking.asking(targets)  # (W, d), (W,)
        predicted = targets != len(table)
        count = predicted.sum()
        weights = predicted / count.clamp(min=1)  # (W,)
        loss = self.objective(states, table, targets.clamp(max=len(table) - 1), weights, generator)
        extra = self.adapter.auxiliary_loss()
        return (loss if extra is None else loss + extra), count

    def next_item_states(self, history: Tensor, table: Tensor) -> Tensor:
        """L2-normalised states that predict what follows each history. history: (B, L) -> (B, d); zero without a history."""
        tokens = self.backbone.inference_tokens(history)
        layout = self.layout(tokens)
        last = layout.narrowed(layout.position == tokens.shape[1] - 1)
        return normalised(last.padded(self.states(tokens, table, layout, last))[:, -1])

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """Groups for the optimiser: what the adapter exempts is not decayed."""
        exempt = {id(p) for p in self.adapter.undecayed_parameters()}
        decayed = [p for p in self.parameters() if id(p) not in exempt]
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": self.adapter.undecayed_parameters(), "weight_decay": 0.0},
        ]

    def n_trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def build_recommender(
    spectrum: Spectrum,
    *,
    adapter: str,
    adapter_options: dict,
    backbone: str,
    backbone_options: dict,
    dim: int,
    max_history: int,
    objective: Objective,
) -> Recommender:
    """Build a recommender from names and options; raise UserError for an unknown name, an invalid option or an impossible dim."""
    adapter_class = load_class(ADAPTERS, "adapter", adapter)
    backbone_class = load_class(BACKBONES, "backbone", backbone)
    adapter_config = adapter_class.Config.parse(adapter_options, f"params.yaml: adapters.{adapter}")
    backbone_config = backbone_class.Config.parse(backbone_options, f"params.yaml: backbones.{backbone}")
    # The adapter is built first and the backbone from a seed of its own: methods that share a seed share their backbone's start.
    seed = torch.initial_seed()
    made = adapter_class(adapter_config, spectrum, dim)
    torch.manual_seed(seed)
    return Recommender(made, backbone_class(backbone_config, spectrum.n_items, dim, max_history), objective)
