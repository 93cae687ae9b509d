"""From histories and an item table to users' states: what recommends here, and what a package carries."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.core.adapter import Adapter
from models.core.layout import Layout
from models.core.loss import normalised
from models.core.recommender import Recommender as Model


class UserEncoder(Model):
    """A trained model whose item table is an input, so that it may have other rows than the adapter's: new items.

    It has the backbone, and of the adapter only what `mix` reads. packed: as in Layout; False gives shapes that do not depend on
    the data, which is what can be exported.
    """

    def __init__(self, model: Model, packed: bool | None = None) -> None:
        nn.Module.__init__(self)
        self.backbone = model.backbone
        self.adapter = _mixer(model.adapter)
        self.packed = packed
        self.eval()

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        """history: (B, L) rows of the table, left-padded with N; table: (N, d). Returns states of length 1, (B, d).

        `Recommender.next_item_states` for any N. The backbone, which knows the N of its training, says by the tokens 0, N and
        N + 1 where it puts items, padding and [MASK].
        """
        n_items = table.shape[0]
        marks = self.backbone.inference_tokens(torch.where(history == n_items, self.backbone.padding, 0))  # (B, P)
        history = F.pad(history, (0, marks.shape[1] - history.shape[1]))
        tokens = torch.where(marks == 0, history, marks + (n_items - self.backbone.padding))
        layout = Layout(tokens != n_items, self.backbone.causal, self.packed)
        last = layout.select(layout.position == tokens.shape[1] - 1)
        states = last.padded(self.states(tokens, table, layout, last))[:, -1]
        return normalised(states * (tokens[:, -1:] != n_items))


def _mixer(adapter: Adapter) -> Adapter:
    """An adapter with the same `mix`, less the tensors that have a row for every item."""
    if type(adapter).mix is Adapter.mix:
        return Adapter(adapter.n_items, adapter.dim)
    mixer = copy.copy(adapter)
    for kind in ("_parameters", "_buffers"):
        kept = {name: tensor for name, tensor in getattr(adapter, kind).items() if name not in adapter.per_item}
        setattr(mixer, kind, kept)
    return mixer
