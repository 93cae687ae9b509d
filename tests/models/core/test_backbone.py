"""What all backbones have in common: padding, order, history and targets."""

from importlib import import_module

import pytest
import torch
from torch import nn

from models.backbones import BACKBONES
from models.core import attention
from models.core.layout import Layout
from tests.models.conftest import PADDING, Make, assert_half_dropped

# Two blocks: the input once, and in each block the attention weights and its output, and the parts of the feed-forward layer.
DROPOUTS = {"sasrec": 1 + 2 * (1 + 1 + 2), "bert4rec": 1 + 2 * (1 + 1 + 1), "hstu": 1 + 2 * 1}


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


@pytest.mark.parametrize(("backbone", "count"), DROPOUTS.items())
def test_every_dropout_acts_in_training_at_its_own_place(
    make: Make, backbone: str, count: int, sequences: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another sets part of what it reads to zero: each changes the loss, and each in another way."""
    model, calls = make("base", backbone, backbone_options={"dropout": 0.3}).train(), []

    def zero_at_one_place(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        """The first time at none, the second time at the first place, and so on."""
        time, place = divmod(len(calls), count)
        calls.append((p, training))
        return x.masked_fill(torch.arange(x.shape[-1]) < x.shape[-1] / 2, 0.0) if place == time - 1 else x

    for module in (import_module(f"models.backbones.{backbone}"), attention):
        monkeypatch.setattr(module, "dropout", zero_at_one_place)
    losses = set()
    for _ in range(1 + count):
        torch.manual_seed(1)
        losses.add(model.loss(sequences, torch.Generator().manual_seed(1))[0].item())
    assert calls == [(0.3, True)] * count * (1 + count)
    assert len(losses) == 1 + count


@pytest.mark.parametrize("backbone", DROPOUTS)
def test_the_whole_input_of_the_first_block_is_dropped(make: Make, backbone: str, sequences: torch.Tensor) -> None:
    """After positions are added and, in BERT4Rec, after the layer norm."""
    model, seen = make("base", backbone, backbone_options={"dropout": 0.5}), []
    model.backbone.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for training in (True, False):
        model.train(training).encode(sequences[:, 1:], model.adapter.table())
    assert_half_dropped(*seen)


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
def test_transformer_blocks_drop_attention_weights_and_outputs_of_sublayers_but_no_residual(
    make: Make, layout: Layout, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    """SASRec also drops the inner output of its feed-forward layer."""
    block, dropped, outputs = make("base", backbone, backbone_options={"dropout": 0.5}).train().backbone.blocks[0], [], []
    for module in (attention, import_module(f"models.backbones.{backbone}")):
        monkeypatch.setattr(module, "dropout", lambda x, p, training: (dropped.append((x, p, training)), x)[1])
    for layer in (block.attention, block.inner, block.outer):
        layer.register_forward_hook(lambda module, given, result: outputs.append(result))
    block(torch.randn(12, 8), layout)
    attended, inner, outer = outputs
    (weights, *_), *rest = dropped
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    expected = [attended, inner.relu(), outer] if backbone == "sasrec" else [attended, outer]
    for (x, p, training), output in zip(rest, expected, strict=True):
        assert (p, training) == (0.5, True)
        assert torch.equal(x, output)


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
