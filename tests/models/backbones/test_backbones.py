"""Backbones, compared with torch's transformer layers, closed forms and counts of masks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from models.backbones import BACKBONES, bert4rec, hstu, sasrec
from models.core.attention import Attention
from models.core.layout import Layout
from models.core.recommender import Recommender

Make = Callable[..., Recommender]
PADDING = 60
MASK = 61


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def copy_attention(reference: nn.MultiheadAttention, module: Attention) -> None:
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([module.query.weight, module.key_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([module.query.bias, module.key_value.bias]))
        reference.out_proj.weight.copy_(module.output.weight)
        reference.out_proj.bias.copy_(module.output.bias)


HIDDEN = ~torch.ones(4, 4, dtype=torch.bool).tril()  # torch's masks say what is not seen


@pytest.fixture(params=[True, False], ids=["packed", "dense"])
def layout(request: pytest.FixtureRequest) -> Layout:
    """Three sequences of four tokens without padding, packed and dense."""
    return Layout(torch.ones(3, 4, dtype=torch.bool), causal=True, packed=request.param)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_torchs_multi_head_attention(layout: Layout, heads: int) -> None:
    torch.manual_seed(0)
    module = Attention(8, heads)
    reference = nn.MultiheadAttention(8, heads, batch_first=True)
    copy_attention(reference, module)
    query, x = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    expected, _ = reference(query, x, x, attn_mask=HIDDEN)
    torch.testing.assert_close(module(layout.rows(query), layout.rows(x), layout), layout.rows(expected))


def test_bert4rec_block_is_torchs_post_norm_encoder_layer(layout: Layout) -> None:
    torch.manual_seed(0)
    module = bert4rec.Block(8, 2, 0.0)
    reference = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True, norm_first=False)
    copy_attention(reference.self_attn, module.attention)
    for layer, other in ((module.inner, reference.linear1), (module.outer, reference.linear2)):
        other.load_state_dict(layer.state_dict())
    for norm in (module.norm_attention, module.norm_feed_forward):
        nn.init.normal_(norm.weight)
    reference.norm1.load_state_dict(module.norm_attention.state_dict())
    reference.norm2.load_state_dict(module.norm_feed_forward.state_dict())
    x = torch.randn(3, 4, 8)
    expected = layout.rows(reference(x, src_mask=HIDDEN))
    torch.testing.assert_close(module(layout.rows(x), layout), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", ["normalised", "plain"])
def test_sasrec_block_has_the_chosen_residual_layout(layout: Layout, residual: str) -> None:
    """q = LN(x); z = q + MHA(q, x, x); y = LN(z); then y + W_2 ReLU(W_1 y), or z + W_2 ReLU(W_1 y); in float64 by numpy."""
    torch.manual_seed(0)
    module = sasrec.Block(8, 1, 0.0, residual)
    for norm in (module.norm_attention, module.norm_feed_forward):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 8)

    def linear(layer: nn.Linear, z: np.ndarray) -> np.ndarray:
        return z @ numbers(layer.weight).T + numbers(layer.bias)

    def norm(layer: nn.LayerNorm, z: np.ndarray) -> np.ndarray:
        scaled = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-8)
        return scaled * numbers(layer.weight) + numbers(layer.bias)

    q = norm(module.norm_attention, numbers(x))
    key, value = np.split(linear(module.attention.key_value, numbers(x)), 2, axis=-1)
    products = linear(module.attention.query, q) @ key.transpose(0, 2, 1) / np.sqrt(8)
    weights = np.where(HIDDEN.numpy(), 0, np.exp(products))
    attended = weights / weights.sum(-1, keepdims=True) @ value
    z = q + linear(module.attention.output, attended)
    y = norm(module.norm_feed_forward, z)
    expected = (y if residual == "normalised" else z) + linear(module.outer, np.maximum(linear(module.inner, y), 0))
    actual = numbers(module(layout.rows(x), layout))
    np.testing.assert_allclose(actual, numbers(layout.rows(torch.from_numpy(expected))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", ["normalised", "plain"])
def test_sasrec_gives_every_block_its_residual_layout(make: Make, residual: str) -> None:
    blocks = make("base", backbone_options={"feed_forward_residual": residual}).backbone.blocks
    assert [block.feed_forward_residual for block in blocks] == [residual, residual]


@pytest.mark.parametrize("packed", [True, False])
def test_hstu_block_on_two_tokens_is_the_closed_form(packed: bool) -> None:
    """With one head and no bias: y = W_o (u * LN(sum_j silu(q_i k_j) / n v_j)) + x, in float64."""
    torch.manual_seed(0)
    block = hstu.Block(2, 1, 0.0, positions=2, relative_bias=False)
    with torch.no_grad():
        block.weight.copy_(torch.randn(2, 8))
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    layout = Layout(torch.ones(1, 2, dtype=torch.bool), causal=True, packed=packed)

    def silu(z: np.ndarray) -> np.ndarray:
        return z / (1 + np.exp(-z))

    def norm(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)

    u, v, q, k = np.split(silu(norm(numbers(x)) @ numbers(block.weight)), 4, axis=1)
    first = silu(q[0] @ k[0]) / 2 * v[0]
    second = silu(q[1] @ k[0]) / 2 * v[0] + silu(q[1] @ k[1]) / 2 * v[1]
    gated = u * norm(np.stack([first, second]))
    expected = gated @ numbers(block.output.weight).T + numbers(block.output.bias) + numbers(x)
    np.testing.assert_allclose(numbers(block(x, layout)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_hstu_relative_bias_belongs_to_distances(packed: bool) -> None:
    """A bias of +b on distance 1 acts on every pair of neighbours and on no other pair."""
    block = hstu.Block(2, 1, 0.0, positions=3, relative_bias=True)
    with torch.no_grad():
        block.weight.zero_()
        block.weight[:, 2:4] = torch.randn(2, 2)  # q k^T = 0, so that a = silu(bias) / n
        block.weight[:, 0:2] = torch.randn(2, 2)
        block.bias.zero_()
        block.bias[3] = 5.0  # distance i - j = 1 of -2..2
    layout = Layout(torch.ones(1, 3, dtype=torch.bool), causal=True, packed=packed)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[0] = torch.tensor([2.0, -1.0]) if x[0, 0] < x[0, 1] else torch.tensor([-1.0, 2.0])
    difference = (block(changed, layout) - block(x, layout)).abs().sum(-1)
    assert difference[1] > 1e-3, "the neighbour sees it"
    assert float(difference[2].detach()) == pytest.approx(0, abs=1e-6), "two steps on, the bias is zero and so is the weight"


@pytest.mark.parametrize(("scaled", "factor"), [(True, 8**0.5), (False, 1.0)])
def test_hstu_reads_item_vectors_times_root_d_plus_positions(make: Make, scaled: bool, factor: float) -> None:
    """With output layers of zero, blocks add nothing, so the states are the input."""
    model = make("base", "hstu", backbone_options={"scale_input": scaled}).eval()
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.output.weight.zero_()
            block.output.bias.zero_()
    items = torch.tensor([[7, 8, 9, 1, 2]])
    table = model.adapter.table()
    expected = factor * numbers(table)[items[0]] + numbers(model.backbone.position)
    np.testing.assert_allclose(numbers(model.encode(items, table))[0], expected, rtol=1e-5, atol=1e-6)


def test_hstu_can_do_without_relative_bias(make: Make) -> None:
    model = make("base", "hstu", backbone_options={"relative_bias": False})
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias") and "output" not in name]


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


@pytest.mark.parametrize("adapter", ["base", "llm_esr"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("heads", [1, 2])
def test_rows_without_padding_and_with_it_give_the_same_loss_and_gradients(
    make: Make, sequences: torch.Tensor, monkeypatch: pytest.MonkeyPatch, adapter: str, backbone: str, heads: int
) -> None:
    """Packed as on a CPU, dense as on a GPU. Negatives are fixed, because the two draw different numbers of them."""
    monkeypatch.setattr("models.losses.info_nce.draw_negatives", lambda t, n, m, g: (t[:, None] + torch.arange(1, 1 + m)) % n)
    found = []
    for packed in (True, False):
        options = {"dropout": 0.0} if adapter == "llm_esr" else {}
        fields = BACKBONES.load(backbone).Config.model_fields
        wanted = {name: value for name, value in {"dropout": 0.0, "heads": heads}.items() if name in fields}
        model = make(adapter, backbone, backbone_options=wanted, **options)
        monkeypatch.setattr(
            model, "layout", lambda tokens, m=model, p=packed: Layout(tokens != PADDING, m.backbone.causal, packed=p)
        )
        loss, count = model.loss(sequences, torch.Generator().manual_seed(0))
        loss.backward()
        found.append((loss, count, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*found)


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


# BERT4Rec


@pytest.fixture
def long_sequences() -> torch.Tensor:
    rows = torch.randint(0, PADDING, (4000, 6), generator=torch.Generator().manual_seed(2))
    rows[:2000, :4] = PADDING
    return rows


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_items_are_masked_at_the_asked_ratio_and_at_least_one(
    make: Make, long_sequences: torch.Tensor, generator: torch.Generator, ratio: float
) -> None:
    """The expected share for n items is p + (1 - p)^n / n; the second term is for sequences without any masked item."""
    model = make("base", "bert4rec", backbone_options={"mask_ratio": ratio, "last_only_share": 0.0}).backbone
    tokens, targets = model.training_examples(long_sequences, generator)
    masked = tokens == MASK
    assert torch.equal(masked, targets != PADDING)
    assert torch.equal(targets[masked], long_sequences[masked])
    assert torch.equal(tokens[~masked], long_sequences[~masked])
    assert (masked.sum(1) >= 1).all()
    assert not (masked & (long_sequences == PADDING)).any()
    for rows, n in ((masked[:2000, 4:], 2), (masked[2000:], 6)):
        expected = ratio + (1 - ratio) ** n / n
        assert float(rows.float().mean()) == pytest.approx(expected, abs=4 * (expected / rows.numel()) ** 0.5)
    by_position = masked[2000:].float().mean(0)
    assert float(by_position.max() - by_position.min()) < 0.06, "every position is masked equally often"


def test_a_share_of_the_samples_has_its_last_item_masked_only(
    make: Make, long_sequences: torch.Tensor, generator: torch.Generator
) -> None:
    only = make("base", "bert4rec", backbone_options={"last_only_share": 1.0}).backbone
    tokens, targets = only.training_examples(long_sequences, generator)
    assert torch.equal(tokens, only.inference_tokens(long_sequences[:, :-1])), "as at inference"
    assert torch.equal(targets[:, -1], long_sequences[:, -1])
    half = make("base", "bert4rec", backbone_options={"mask_ratio": 0.9, "last_only_share": 0.5}).backbone
    tokens, _ = half.training_examples(long_sequences[2000:], generator)
    share = ((tokens == MASK).sum(1) == 1).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.04)


def test_mask_has_a_vector_of_the_backbone(make: Make) -> None:
    model = make("base", "bert4rec").eval()
    table = model.adapter.table().detach().requires_grad_()
    state = model.next_item_states(torch.full((1, 5), PADDING), table)
    (state * torch.arange(1.0, 9)).sum().backward()
    assert not table.grad.any(), "without a history only [MASK] is there"
    assert model.backbone.mask_vector.grad.abs().sum() > 0


def test_every_backbone_sees_as_many_items(make: Make) -> None:
    history = torch.arange(5)[None]
    for backbone in BACKBONES:
        tokens = make("base", backbone).backbone.inference_tokens(history)
        assert tokens[tokens < PADDING].tolist() == list(range(5))


def test_a_cloze_epoch_goes_over_the_users_several_times(make: Make) -> None:
    assert make("base", "bert4rec", backbone_options={"passes_per_epoch": 3}).backbone.passes_per_epoch == 3
    assert all(make("base", backbone).backbone.passes_per_epoch == 1 for backbone in ("sasrec", "hstu"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_option_is_described(backbone: str) -> None:
    for name, field in BACKBONES.load(backbone).Config.model_fields.items():
        assert field.description, f"{backbone}.{name} has no description"
