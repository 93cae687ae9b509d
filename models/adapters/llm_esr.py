"""LLM-ESR (Liu et al. 2024): a collaborative and a semantic view of every item, which attend to each other in the sequence."""

import torch
from pydantic import Field
from torch import Tensor, nn

from common.errors import UserError
from common.section import Section
from models.core.adapter import Adapter, InputScale, Spectrum
from models.core.attention import Attention
from models.core.dropout import dropout
from models.core.fusion import half
from models.core.layout import Layout

HEADS = 2


class LLMESR(Adapter):
    """T = [E_id ; W_2 (W_1 s + b_1) + b_2], two views of width d / 2; s is a row of sqrt(l) E, W_1: l -> l / 2, no activation.

    E_id is initialised with the scores of the centred principal components. `mix` lets the views attend to each other:

    1. Both views get learned positions p, the same for both: v = Dropout(sqrt(d / 2) v + p).
    2. Cross-attention with two heads and no residual: id' = CA(q = text, kv = IDs), text' = CA(q = IDs, kv = text).
    3. A linear layer maps [id' ; text'] to the input of the backbone.

    Source: the authors' models/DualLLMSRS.py, including the Xavier-normal positions. Differences: one backbone of width d
    replaces two passes of a backbone of width d / 2, so step 3 joins the views; the cross-attention has the backbone's mask
    instead of one for padding alone; and the self-distillation between similar users, which needs a language model's embeddings
    of users, is left out.
    """

    class Config(Section):
        input_scale: InputScale = Field(
            "sqrt_width", description="multiply the text embeddings by sqrt(width), or leave unit rows"
        )
        cross_attention: bool = Field(True, description="let the views attend to each other before the backbone")
        dropout: float = Field(0.2, ge=0, lt=1, description="on both views with their positions, before the cross-attention")

    per_item = ("E", "id_embedding")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__(spectrum.n_items, dim)
        view = half(dim, "llm_esr")
        if config.cross_attention and view % HEADS:
            raise UserError(f"adapter llm_esr: dim is {dim}, but {HEADS} heads of cross-attention need a multiple of {2 * HEADS}")
        centred = spectrum.centred
        centred.require_rank(dim, "llm_esr", 2)
        E = spectrum.inputs(config.input_scale)
        self.register_buffer("E", E, persistent=False)  # (N, l)
        self.id_embedding = nn.Parameter(centred.U[:, :view] * centred.sigma[:view])  # (N, d / 2)
        self.inner = nn.Linear(E.shape[1], E.shape[1] // 2)
        self.outer = nn.Linear(E.shape[1] // 2, view)
        if config.cross_attention:
            self.to_ids = Attention(view, HEADS, bias=False)
            self.to_text = Attention(view, HEADS, bias=False)
            self.join = nn.Linear(dim, dim)
        self.crosses = config.cross_attention
        self.dropout = config.dropout

    E: Tensor

    def semantic_table(self) -> Tensor:
        # The product of the two matrices comes first, so that the wide layer is applied to d / 2 rows instead of N.
        weight = self.outer.weight @ self.inner.weight  # (d / 2, l)
        return self.E @ weight.T + self.outer(self.inner.bias)

    def table(self) -> Tensor:
        return torch.cat([self.id_embedding, self.semantic_table()], dim=1)

    def prepare_mix(self, positions: int) -> None:
        if self.crosses:
            self.position = nn.Parameter(nn.init.xavier_normal_(torch.empty(positions, self.dim // 2)))  # p (P, d / 2)

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        if not self.crosses:
            return x
        views = x.unflatten(-1, (2, -1)) * (self.dim // 2) ** 0.5 + self.position[layout.position].unsqueeze(1)  # (T, 2, d / 2)
        ids, text = dropout(views, self.dropout, self.training).unbind(1)
        return self.join(torch.cat([self.to_ids(text, ids, layout), self.to_text(ids, text, layout)], dim=-1))
