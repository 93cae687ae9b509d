"""SpecMLP: the whitened spectrum through a hidden layer that is wider than the item vectors. This project's own."""

from pydantic import Field
from torch import Tensor, nn

from common.section import Section
from models.adapters.whitenrec import default_rank
from models.core.adapter import Adapter, Spectrum
from models.core.dropout import dropout


class SpecMLP(Adapter):
    """T = ReLU(W_2 Dropout(ReLU(W_1 Dropout(X) + b_1)) + b_2), X = sqrt(N - 1) U_c[:, :w], W_1: (h, w), W_2: (d, h).

    Borrowed: this is WhitenRec's MLP head on its whitened text, without IDs, and w is chosen as there. Ours: the hidden layer has
    h columns instead of d. With h = d, the nonlinear part is too narrow to tell items apart, and IDs seem to be needed
    (docs/research.md).
    """

    class Config(Section):
        hidden: int = Field(512, ge=1, description="columns of the hidden layer, h")
        dropout: float = Field(0.2, ge=0, lt=1, description="before each layer")

    per_item = ("whitened",)

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__(spectrum.n_items, dim)
        centred = spectrum.centred
        rank = default_rank(centred)
        whitened = centred.U[:, :rank] * (spectrum.n_items - 1) ** 0.5
        self.register_buffer("whitened", whitened.contiguous(), persistent=False)  # X (N, w)
        self.inner = nn.Linear(rank, config.hidden)
        self.outer = nn.Linear(config.hidden, dim)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.dropout = config.dropout

    whitened: Tensor

    def table(self) -> Tensor:
        hidden = self.inner(dropout(self.whitened, self.dropout, self.training)).relu()
        table: Tensor = self.outer(dropout(hidden, self.dropout, self.training)).relu()
        return table

    def semantic_table(self) -> Tensor:
        return self.table()

    def report(self) -> dict[str, object]:
        return {"whiten_rank": self.whitened.shape[1]}
