"""MoRec (Yuan et al. 2023): a dense layer on the text embeddings replaces IDs."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.section import Section
from models.core.adapter import InputScale, Spectrum
from models.core.fusion import FusedAdapter


class MoRec(FusedAdapter):
    """E_s = GELU(X W + b), W: (l, d_s), X = sqrt(l) E.

    Source: the first layer of the text branch in the authors' main-2stage (model/encoders.py), with their initialisation: W is
    Xavier-normal, b is zero.
    """

    class Config(Section):
        input_scale: InputScale = Field(
            "sqrt_width", description="multiply the text embeddings by sqrt(width), or leave unit rows"
        )
        fusion: Literal["none", "add", "concat"] = Field("none", description="text alone, IDs added, or IDs beside it in halves")
        id_std: float = Field(0.02, ge=0, description="standard deviation of the initial ID embeddings, where IDs are fused")

    per_item = ("E", "id_embedding")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__("morec", config.fusion, spectrum.n_items, dim, config.id_std)
        E = spectrum.inputs(config.input_scale)
        self.register_buffer("E", E, persistent=False)  # (N, l)
        self.dense = nn.Linear(E.shape[1], self.semantic_dim)
        nn.init.xavier_normal_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    E: Tensor

    def project(self) -> Tensor:
        return F.gelu(self.dense(self.E))
