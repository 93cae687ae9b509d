"""Base: the ID-only recommender, the baseline of all text methods."""

from pydantic import Field
from torch import Tensor

from common.section import Section
from models.core.adapter import Adapter, Spectrum, id_embedding


class Base(Adapter):
    """T = E_id. Of the spectrum, only the number of items is used.

    id_std must be positive: with cosine scoring, a zero row has no direction.
    """

    class Config(Section):
        id_std: float = Field(0.02, gt=0, description="standard deviation of the initial ID embeddings")

    per_item = ("id_embedding",)

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__(spectrum.n_items, dim)
        self.id_embedding = id_embedding(spectrum.n_items, dim, config.id_std)

    def table(self) -> Tensor:
        return self.id_embedding
