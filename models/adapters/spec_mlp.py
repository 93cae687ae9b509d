"""SpecMLP: WhitenRec's head on text alone, with a wider hidden layer and item vectors of equal length. This project's own."""

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.section import Section
from models.adapters.whitenrec import WhitenRec
from models.core.adapter import Spectrum


class SpecMLP(WhitenRec):
    """Z = ReLU(W_2 Dropout(ReLU(W_1 Dropout(X) + b_1)) + b_2), T_i = sqrt(d) Z_i / |Z_i|; X = sqrt(N - 1) U_c[:, :w].

    W_1: (h, w), W_2: (d, h). Borrowed from WhitenRec: X with its rule for w, two layers with ReLU and dropout, and their
    initialisation. Ours: the hidden layer has h columns instead of d, and all item vectors have length sqrt(d), a root mean
    square of 1. The cosine loss does not see their length, but a backbone does. docs/research.md has what each of them changes.
    """

    class Config(Section):
        hidden: int = Field(512, ge=1, description="columns of the hidden layer, h")
        dropout: float = Field(0.3, ge=0, lt=1, description="before each layer")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__(WhitenRec.Config(dropout=config.dropout), spectrum, dim)
        widths = (self.whitened.shape[1], config.hidden, dim)
        layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def project(self) -> Tensor:
        """Return E_s, (N, d_s), with rows of length sqrt(d)."""
        return F.normalize(super().project(), dim=1) * self.dim**0.5
