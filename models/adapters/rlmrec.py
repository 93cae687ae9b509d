"""RLMRec (Ren et al. 2024): an auxiliary loss aligns the IDs with the projected text."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.section import Section
from models.core.adapter import InputScale, Spectrum
from models.core.fusion import FusedAdapter


class RLMRec(FusedAdapter):
    """Adds beta (1 - mean_i cos_i) over all N items to the loss; s_i is row i of sqrt(l) E, e_i is row i of the IDs (N x d_s).

    con: cos_i = cos(f(s_i), e_i), f: l -> h -> d_s. gen: cos_i = cos(g(e_i), s_i), g: d_s -> h -> l, which reconstructs the text.
    f and g are Linear, LeakyReLU, Linear with h = (l + d_s) // 2. If the text is fused, E_s = f(s).
    Source: AlphaFuse's sequential port (backbone_SASRec.py) of RLMRec-Con and RLMRec-Gen, without negatives and masked nodes.
    """

    class Config(Section):
        input_scale: InputScale = Field(
            "sqrt_width", description="multiply the text embeddings by sqrt(width), or leave unit rows"
        )
        fusion: Literal["id", "add", "concat"] = Field(
            "concat", description="IDs alone (the text acts through the loss only), text added, or text beside them in halves"
        )
        objective: Literal["con", "gen"] = Field(
            "con", description="align the projected text with the IDs, or reconstruct the text from the IDs"
        )
        beta: float = Field(0.1, ge=0, description="weight of the auxiliary loss")
        id_std: float = Field(0.02, gt=0, description="standard deviation of the initial ID embeddings")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__("rlmrec", config.fusion, spectrum.n_items, dim, config.id_std)
        self.beta = config.beta
        E = spectrum.inputs(config.input_scale)
        self.register_buffer("E", E, persistent=False)  # (N, l)
        width = E.shape[1]
        hidden = (width + self.semantic_dim) // 2
        generates = config.objective == "gen"
        unused = generates and config.fusion == "id"
        self.projection = None if unused else mlp(width, hidden, self.semantic_dim)  # f
        self.reconstruction = mlp(self.semantic_dim, hidden, width) if generates else None  # g
        self._projected: Tensor | None = None

    E: Tensor

    def project(self) -> Tensor:
        """Return f(E), (N, d_s); or E itself if there is no f, because only the loss uses the text."""
        return self.E if self.projection is None else self.projection(self.E)

    def table(self) -> Tensor:
        self._projected = self.project()  # the auxiliary loss of this step uses it
        return self.fuse(self._projected)

    def auxiliary_loss(self) -> Tensor | None:
        projected, self._projected = self._projected, None
        if projected is None or self.beta == 0:
            return None
        return self.beta * self.misalignment(projected)

    def misalignment(self, projected: Tensor) -> Tensor:
        """Return 1 - mean_i cos_i, a scalar in [0, 2], for the objective `con` or `gen`. projected: f(E)."""
        if self.reconstruction is None:
            cosines = F.cosine_similarity(projected, self.id_embedding, dim=1, eps=1e-8)
        else:
            cosines = F.cosine_similarity(self.reconstruction(self.id_embedding), self.E, dim=1, eps=1e-8)
        return 1 - cosines.mean()

    @torch.no_grad()
    def report(self) -> dict[str, object]:
        return {"misalignment": self.misalignment(self.project()).item()}


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return Linear, LeakyReLU(0.01), Linear with Xavier-uniform weights: (…, inputs) -> (…, outputs)."""
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    for layer in (first, second):
        nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(first, nn.LeakyReLU(0.01), second)
