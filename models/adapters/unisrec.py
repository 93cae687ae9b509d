"""UniSRec (Hou et al. 2022): a mixture of parametric-whitening experts on the text embeddings."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.section import Section
from models.core.adapter import InputScale, Spectrum
from models.core.dropout import dropout
from models.core.fusion import FusedAdapter


class UniSRec(FusedAdapter):
    """E_s = sum_e g_e z_e, z_e = (Dropout(x) - b_e) W_e, g = softmax(x W_g + eps * (softplus(x W_n) + 0.01)).

    x is a row of sqrt(l) E; the authors' code normalises its input to entries of about that size. eps ~ N(0, 1), drawn per item
    and expert in training only. All experts are used, as in the authors' code.

    Source: the authors' unisrec.py. Differences: the table is built once per step, so an item has the same noise everywhere in
    the step; and all experts share one dropout mask, so that they are one matrix product.
    """

    class Config(Section):
        input_scale: InputScale = Field(
            "sqrt_width", description="multiply the text embeddings by sqrt(width), or leave unit rows"
        )
        fusion: Literal["none", "add", "concat"] = Field(
            "concat", description="text alone, IDs added, or IDs beside it in halves"
        )
        experts: int = Field(8, ge=1, description="parametric-whitening experts")
        dropout: float = Field(0.2, ge=0, lt=1, description="on the text embeddings, before the experts")
        id_std: float = Field(0.02, ge=0, description="standard deviation of the initial ID embeddings, where IDs are fused")

    per_item = ("E", "id_embedding")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__("unisrec", config.fusion, spectrum.n_items, dim, config.id_std)
        E = spectrum.inputs(config.input_scale)
        self.register_buffer("E", E, persistent=False)  # (N, l)
        width = E.shape[1]
        self.weight = nn.Parameter(torch.randn(width, config.experts, self.semantic_dim) * 0.02)  # W (l, e, d_s)
        self.bias = nn.Parameter(torch.zeros(config.experts, width))  # b (e, l)
        self.gate = nn.Parameter(torch.zeros(width, config.experts))  # W_g (l, e)
        self.gate_noise = nn.Parameter(torch.zeros(width, config.experts))  # W_n (l, e)
        self.dropout = config.dropout

    E: Tensor

    def gates(self) -> Tensor:
        """Return the gates g, (N, e), with noise in training."""
        logits = self.E @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(self.E @ self.gate_noise) + 0.01)
        return logits.softmax(dim=1)

    def project(self) -> Tensor:
        x = dropout(self.E, self.dropout, self.training)
        gates = self.gates()
        z = (x @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])  # (N, e, d_s)
        return torch.einsum("ne,ned->nd", gates, z) - gates @ torch.einsum("el,led->ed", self.bias, self.weight)

    @torch.no_grad()
    def report(self) -> dict[str, object]:
        """Return the mean gate of every expert."""
        return {"gates": self.gates().mean(0).tolist()}
