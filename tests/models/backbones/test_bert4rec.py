"""BERT4Rec, compared with torch's encoder layer and with counts of masks."""

import pytest
import torch
from torch import nn

from models.backbones import bert4rec
from models.core.layout import Layout
from tests.models.conftest import HIDDEN, PADDING, Make, copy_attention

MASK = 61


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


def test_a_cloze_epoch_goes_over_the_users_several_times(make: Make) -> None:
    assert make("base", "bert4rec", backbone_options={"passes_per_epoch": 3}).backbone.passes_per_epoch == 3
    assert all(make("base", backbone).backbone.passes_per_epoch == 1 for backbone in ("sasrec", "hstu"))
