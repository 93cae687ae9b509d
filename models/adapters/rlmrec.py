"""RLMRec (Ren et al. 2024): collaborative vectors are aligned with the projected text by an auxiliary loss."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.section import Section
from models.core.adapter import Spectrum
from models.core.fusion import FusedAdapter


class RLMRec(FusedAdapter):
    """f(s) = W_2 LeakyReLU(W_1 s + b_1) + b_2, hidden width (l + d_s) // 2; loss += beta (1 - mean_i cos(f(s_i), e_i)).

    The contrastive variant in the form of AlphaFuse's sequential port: the mean is over all N items.
    """

    class Config(Section):
        fusion: Literal["id", "add", "concat"] = Field(
            "concat", description="IDs alone (the text acts through the loss only), text added, or text beside them in halves"
        )
        beta: float = Field(0.1, ge=0, description="weight of the alignment loss")
        id_std: float = Field(0.02, gt=0, description="standard deviation of the initial ID embeddings")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__("rlmrec", config.fusion, spectrum.n_items, dim, config.id_std)
        self.beta = config.beta
        E = spectrum.embeddings()
        self.register_buffer("E", E, persistent=False)  # (N, l)
        width = E.shape[1]
        hidden = (width + self.semantic_dim) // 2
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, self.semantic_dim)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
        self._projected: Tensor | None = None

    E: Tensor

    def project(self) -> Tensor:
        """f(E), (N, d_s); kept for the loss of this step."""
        self._projected = self.outer(F.leaky_relu(self.inner(self.E), 0.01))
        return self._projected

    def auxiliary_loss(self) -> Tensor | None:
        projected, self._projected = self._projected, None
        if projected is None or self.beta == 0:
            return None
        return self.beta * self.misalignment(projected)

    def misalignment(self, projected: Tensor) -> Tensor:
        """1 - mean_i cos(f(s_i), e_i), in [0, 2]."""
        return 1 - F.cosine_similarity(projected, self.id_embedding, dim=1, eps=1e-8).mean()

    @torch.no_grad()
    def report(self) -> dict[str, object]:
        return {"misalignment": self.misalignment(self.project()).item()}
