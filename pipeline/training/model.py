"""Builds a recommender from the names and options of `params.yaml`."""

import torch

from common.errors import UserError
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.core.adapter import Spectrum
from models.core.loss import Loss
from models.core.recommender import Recommender


def build_recommender(
    spectrum: Spectrum,
    *,
    adapter: str,
    adapter_options: dict,
    backbone: str,
    backbone_options: dict,
    dim: int,
    max_history: int,
    objective: Loss,
    sparse: bool = False,
) -> Recommender:
    """Build an untrained recommender from names and options.

    spectrum: of the dataset's embeddings; max_history: L. Raises UserError for an unknown name, an invalid option, a dim that the
    adapter or the backbone cannot have, and for `sparse` with an adapter that uses every item in each step.
    """
    adapter_class = ADAPTERS.load(adapter)
    backbone_class = BACKBONES.load(backbone)
    adapter_config = adapter_class.Config.parse(adapter_options, f"params.yaml: adapters.{adapter}")
    backbone_config = backbone_class.Config.parse(backbone_options, f"params.yaml: backbones.{backbone}")
    # Adapter and backbone are both initialised from the seed, so that methods with the same seed have the same initial backbone.
    seed = torch.initial_seed()
    torch.manual_seed(seed)
    built_backbone = backbone_class(backbone_config, spectrum.n_items, dim, max_history)
    torch.manual_seed(seed)
    built_adapter = adapter_class(adapter_config, spectrum, dim)
    built_adapter.prepare_mix(built_backbone.positions)
    if sparse and not built_adapter.per_item:
        raise UserError(
            f"adapter {adapter} uses every item in each step, so train.optimiser sparse_adam is unsupported; use adam"
        )
    return Recommender(built_adapter, built_backbone, objective, sparse)
