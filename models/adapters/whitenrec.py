"""WhitenRec (Zhang et al. 2024): whitens the text embeddings, then projects them."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from common.section import Section
from models.core.adapter import Spectrum
from models.core.dropout import dropout
from models.core.fusion import FusedAdapter


class WhitenRec(FusedAdapter):
    """E_s = head(X_w), X_w = sqrt(N - 1) U_c[:, :w], with mean 0 and covariance I.

    This is PCA whitening. ZCA, which the authors use, is a rotation of it, which the first layer of the head absorbs but for the
    dropout before it. As in the sources, w is the full rank, except for small catalogues: if N <= l, whitening all directions
    makes the distances between all items equal, and if N is not much larger, nearly equal. For N <= 2 l, w is therefore at most
    N // 4.
    Head `mlp`: Dropout, Linear, ReLU, Dropout, Linear, ReLU. Head `linear`: Linear, GELU.
    Source: the whitening of DWSRec (model/dwsrec.py), by the same first author. Raises UserError if whiten_rank exceeds the
    centred rank.
    """

    class Config(Section):
        fusion: Literal["none", "add", "concat"] = Field("none", description="text alone, IDs added, or IDs beside it in halves")
        head: Literal["mlp", "linear"] = Field("mlp", description="projection of the whitened text")
        whiten_rank: int | None = Field(
            None, ge=1, description="directions kept, w; if empty, the centred rank, and at most N // 4 where N <= 2 l"
        )
        dropout: float = Field(0.2, ge=0, lt=1, description="before each layer of the mlp head")
        id_std: float = Field(0.02, ge=0, description="standard deviation of the initial ID embeddings, where IDs are fused")

    per_item = ("whitened", "id_embedding")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__("whitenrec", config.fusion, spectrum.n_items, dim, config.id_std)
        centred = spectrum.centred
        rank = config.whiten_rank or default_rank(centred)
        if rank > centred.rank:
            raise UserError(
                f"adapter whitenrec: whiten_rank is {rank}, but the centred embeddings have rank {centred.rank}; "
                f"choose whiten_rank <= {centred.rank}, or null"
            )
        whitened = centred.U[:, :rank] * (spectrum.n_items - 1) ** 0.5
        self.register_buffer("whitened", whitened.contiguous(), persistent=False)  # (N, w)
        widths = [rank, *[self.semantic_dim] * (1 if config.head == "linear" else 2)]
        layers = [nn.Linear(width, self.semantic_dim) for width in widths[:-1]]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.head = config.head
        self.dropout = config.dropout

    whitened: Tensor

    def project(self) -> Tensor:
        x = self.whitened
        if self.head == "linear":
            return F.gelu(self.layers[0](x))
        for layer in self.layers:
            x = layer(dropout(x, self.dropout, self.training)).relu()
        return x

    def report(self) -> dict[str, object]:
        return {"whiten_rank": self.whitened.shape[1]}


def default_rank(centred: Spectrum) -> int:
    """Return the rank of the centred embeddings, and at most N // 4 if N <= 2 l."""
    small = centred.n_items <= 2 * centred.V.shape[0]
    return max(1, min(centred.rank, centred.n_items // 4)) if small else centred.rank
