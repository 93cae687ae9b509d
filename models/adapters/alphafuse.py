"""AlphaFuse (Hu et al. 2025): learns IDs in the trailing directions of the standardised semantic space."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.section import Section
from models.core.adapter import Adapter, Spectrum, id_embedding

ID_STD = {"zeros": 0.0, "normal": 1.0}


class AlphaFuse(Adapter):
    """T = S + [0 ; E_id], S = sqrt(N - 1) U_c[:, :d], so that each column of S has mean 0 and sample standard deviation 1.

    S (N x d) is frozen. E_id (N x d_n), d_n = round(null_share * d), is trained and added to the trailing columns of S, the
    "null" space. These columns keep their semantics, as in the authors' code (backbone_SASRec.py).
    """

    class Config(Section):
        null_share: float = Field(0.5, gt=0, le=1, description="share of the d columns to which an ID is added")
        id_init: Literal["zeros", "normal"] = Field("zeros", description="initial IDs: zeros or N(0, 1)")

    per_item = ("semantics", "id_embedding")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__(spectrum.n_items, dim)
        centred = spectrum.centred
        centred.require_rank(dim, "alphafuse")
        self.null_dim = max(1, round(config.null_share * dim))
        semantics = centred.U[:, :dim] * (spectrum.n_items - 1) ** 0.5
        self.register_buffer("semantics", semantics.contiguous(), persistent=False)
        self.id_embedding = id_embedding(spectrum.n_items, self.null_dim, ID_STD[config.id_init])

    semantics: Tensor

    def table(self) -> Tensor:
        return self.semantics + nn.functional.pad(self.id_embedding, (self.dim - self.null_dim, 0))

    def semantic_table(self) -> Tensor:
        return self.semantics

    def report(self) -> dict[str, float]:
        with torch.no_grad():
            return {"id_rms": self.id_embedding.square().mean().sqrt().item()}
