"""Adapter and backbone each start from the seed; names and options that give no recommender are one line each."""

import pytest
import torch

from common.errors import UserError
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.core.adapter import Spectrum
from models.losses import LOSSES
from tests.models.conftest import Make


def test_an_adapter_that_needs_every_item_is_refused_sparse(make: Make) -> None:
    with pytest.raises(UserError, match="rlmrec uses every item in each step") as caught:
        make("rlmrec", sparse=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_adapters_start_with_the_same_backbone(make: Make, backbone: str) -> None:
    expected = make("base", backbone).backbone.state_dict()
    for adapter in ADAPTERS:
        torch.testing.assert_close(make(adapter, backbone).backbone.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_starts_the_same_on_all_backbones_with_as_many_positions(make: Make, adapter: str) -> None:
    states = [make(adapter, backbone).adapter.state_dict() for backbone in ("sasrec", "hstu")]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(("names", "near"), [(("bse", "sasrec"), "base"), (("base", "hstuu"), "hstu")])
def test_a_misspelt_name(spectrum: Spectrum, names: tuple[str, str], near: str) -> None:
    from pipeline.training.model import build_recommender

    with pytest.raises(UserError, match=f"did you mean '{near}'"):
        build_recommender(
            spectrum,
            adapter=names[0],
            adapter_options={},
            backbone=names[1],
            backbone_options={},
            dim=8,
            max_history=5,
            objective=LOSSES.load("info_nce")(0.07, 7),
        )
