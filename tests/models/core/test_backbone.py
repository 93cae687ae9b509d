"""What all backbones have in common: padding, order, history and targets."""

import pytest
import torch
from torch import nn

from models.backbones import BACKBONES
from tests.models.conftest import PADDING, Make


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_amount_of_left_padding_does_not_matter(make: Make, backbone: str) -> None:
    """Positions are right-aligned: a longer window gives the same state, once it has the same positions at its end.

    HSTU divides by the longest history, so its attention weights are scaled; layer norm takes the scale out again.
    """
    short, long = make("spectran", backbone, max_history=5).eval(), make("spectran", backbone, max_history=9).eval()
    weights = short.state_dict()
    for name, tensor in long.state_dict().items():
        if tensor.shape != weights[name].shape and "position" in name:
            weights[name] = torch.cat([torch.randn(4, 8), weights[name]])
        elif tensor.shape != weights[name].shape:
            weights[name] = torch.nn.functional.pad(weights[name], (4, 4))  # distances beyond the short window
    long.load_state_dict(weights)
    table = short.adapter.table()
    items = torch.tensor([[7, 8, 9]])
    narrow = short.next_item_states(nn.functional.pad(items, (2, 0), value=PADDING), table)
    wide = long.next_item_states(nn.functional.pad(items, (6, 0), value=PADDING), table)
    torch.testing.assert_close(wide, narrow, rtol=1e-3, atol=1e-3 if backbone == "hstu" else 1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_order_of_the_history_matters(make: Make, backbone: str) -> None:
    model = make("spectran", backbone).eval()
    table = model.adapter.table()
    forward, back = (model.next_item_states(torch.tensor([order]), table) for order in ([1, 2, 3, 4, 5], [4, 3, 2, 1, 5]))
    assert not torch.allclose(forward, back, atol=1e-6)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_causal_backbones_predict_every_successor(make: Make, generator: torch.Generator, backbone: str) -> None:
    model = make("base", backbone).backbone
    tokens, targets = model.training_examples(torch.tensor([[60, 60, 3, 1, 4, 1]]), generator)
    assert tokens.tolist() == [[60, 60, 3, 1, 4]]
    assert targets.tolist() == [[60, 60, 1, 4, 1]]


def test_every_backbone_sees_as_many_items(make: Make) -> None:
    history = torch.arange(5)[None]
    for backbone in BACKBONES:
        tokens = make("base", backbone).backbone.inference_tokens(history)
        assert tokens[tokens < PADDING].tolist() == list(range(5))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_option_is_described(backbone: str) -> None:
    for name, field in BACKBONES.load(backbone).Config.model_fields.items():
        assert field.description, f"{backbone}.{name} has no description"
