"""LLMInit (Zhang et al. 2025): IDs are initialised with the columns of the text embeddings that vary most."""

import torch
from pydantic import Field
from torch import Tensor, nn

from common.errors import UserError
from common.section import Section
from models.core.adapter import Adapter, Spectrum


class LLMInit(Adapter):
    """T = E_id, initialised with E[:, c]; c are the d columns of E with the largest variance over items, in ascending order.

    `popular_share` = 0.2 computes the variance over the 20 % most popular items, as in the authors' code (contgcn.py,
    var_sample). Raises UserError if d exceeds the number of columns of E.
    """

    class Config(Section):
        std: float | None = Field(
            None, gt=0, description="rescale the initial table to this standard deviation; as it is if empty"
        )
        popular_share: float | None = Field(
            None, gt=0, le=1, description="share of the items, the most popular in training, that variances are of; all if empty"
        )

    per_item = ("id_embedding",)

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__(spectrum.n_items, dim)
        E = spectrum.embeddings()
        if dim > E.shape[1]:
            raise UserError(f"adapter llminit: dim is {dim}, but the embeddings have {E.shape[1]} columns to choose from")
        measured = E if config.popular_share is None else E[most_popular(spectrum, config.popular_share)]
        chosen = measured.double().var(dim=0).topk(dim).indices.sort().values  # (d,)
        start = E[:, chosen]
        if config.std is not None:
            start = start * (config.std / start.std())
        self.id_embedding = nn.Parameter(start.contiguous())
        self.register_buffer("columns", chosen, persistent=False)

    columns: Tensor

    def table(self) -> Tensor:
        return self.id_embedding

    @torch.no_grad()
    def report(self) -> dict[str, object]:
        return {"id_rms": self.id_embedding.square().mean().sqrt().item()}


def most_popular(spectrum: Spectrum, share: float) -> Tensor:
    """Return the floor(share N) items, at least 2, with the most training interactions, (k,). Ties go to the lower index."""
    count = max(2, int(share * spectrum.n_items))
    return spectrum.popularity.sort(descending=True, stable=True).indices[:count]
