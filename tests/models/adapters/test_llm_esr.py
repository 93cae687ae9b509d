"""LLM-ESR, compared with scikit-learn's PCA and a float64 reference of its cross-attention."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from models.core.layout import Layout
from tests.models.conftest import Decompose, Make, numbers


def test_llm_esr_ids_start_as_principal_component_scores(make: Make, embeddings: np.ndarray) -> None:
    scores = PCA(4, svd_solver="full").fit_transform(embeddings)
    actual = numbers(make("llm_esr").adapter.id_embedding)
    np.testing.assert_allclose(np.abs(actual), np.abs(scores), atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sign(actual * scores).sum(0)), len(scores))


def test_llm_esr_semantic_view_is_linear_of_rank_half_dim(make: Make, embeddings: np.ndarray, decompose: Decompose) -> None:
    """f(a + b) - f(b) = f(a) - f(0)."""
    adapter = make("llm_esr").adapter

    def f(x: np.ndarray) -> np.ndarray:
        adapter.E = torch.from_numpy(x).float()
        return numbers(adapter.semantic_table())

    a, b = embeddings, embeddings[::-1].copy()
    np.testing.assert_allclose(f(a + b) - f(b), f(a) - f(np.zeros_like(a)), atol=1e-5)
    layered = adapter.outer(adapter.inner(torch.from_numpy(a).float()))
    np.testing.assert_allclose(f(a), numbers(layered), atol=1e-5)


def test_llm_esr_without_cross_attention_is_a_plain_concatenation(make: Make, sequences: torch.Tensor) -> None:
    model = make("llm_esr", cross_attention=False)
    adapter = model.adapter
    expected = torch.cat([adapter.id_embedding, adapter.outer(adapter.inner(adapter.E))], dim=1)
    torch.testing.assert_close(adapter.table(), expected)
    x = torch.randn(10, 8)
    assert adapter.mix(x, Layout(torch.ones(2, 5, dtype=torch.bool), causal=True)) is x


def test_llm_esr_mixes_by_two_cross_attentions_without_a_residual(make: Make) -> None:
    """Views times sqrt(d / 2) plus positions, compared with a float64 softmax in which hidden positions have no weight."""
    adapter = make("llm_esr").adapter.eval()
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    visible = np.array([[True, False, False], [True, True, False], [True, False, True]])
    layout = Layout(torch.ones(1, 3, dtype=torch.bool), causal=True)
    layout.visible = torch.from_numpy(visible).unsqueeze(1)

    def crossed(attention: torch.nn.Module, query: np.ndarray, x: np.ndarray) -> np.ndarray:
        q = query @ numbers(attention.query.weight).T
        k, v = np.split(x @ numbers(attention.key_value.weight).T, 2, axis=1)
        heads = []
        for columns in (slice(0, 2), slice(2, 4)):
            scores = np.where(visible, np.exp(q[:, columns] @ k[:, columns].T / np.sqrt(2)), 0)
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, columns])
        return np.hstack(heads) @ numbers(attention.output.weight).T + numbers(attention.output.bias)

    ids, text = (2 * view + numbers(adapter.position)[:3] for view in np.split(numbers(x), 2, axis=1))  # sqrt(8 / 2) = 2
    joined = np.hstack([crossed(adapter.to_ids, text, ids), crossed(adapter.to_text, ids, text)])
    expected = joined @ numbers(adapter.join.weight).T + numbers(adapter.join.bias)
    np.testing.assert_allclose(numbers(adapter.mix(x, layout)), expected, atol=1e-6)


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "hstu"])
def test_llm_esr_has_a_position_for_every_token_of_the_backbone(make: Make, sequences: torch.Tensor, backbone: str) -> None:
    model = make("llm_esr", backbone)
    assert len(model.adapter.position) == model.backbone.inference_tokens(sequences[:, 1:]).shape[1]


@pytest.mark.parametrize("packed", [True, False])
def test_llm_esr_cross_attention_knows_the_order_of_the_items(make: Make, packed: bool) -> None:
    """The last of three rows depends on the order of the two before it, unless all positions are equal."""
    adapter = make("llm_esr").adapter.eval()
    layout = Layout(torch.ones(1, 3, dtype=torch.bool), causal=True, packed=packed)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    swapped = x[[1, 0, 2]]
    assert float((adapter.mix(x, layout) - adapter.mix(swapped, layout))[2].detach().abs().max()) > 1e-3
    with torch.no_grad():
        adapter.position.copy_(adapter.position[0].expand_as(adapter.position))
    torch.testing.assert_close(adapter.mix(x, layout)[2], adapter.mix(swapped, layout)[2])


def test_llm_esr_takes_positions_from_the_right_end_of_a_padded_sequence(make: Make) -> None:
    """Two items after three paddings are at positions 3 and 4, so a change of position 0 has no effect."""
    model = make("llm_esr").eval()
    history = torch.tensor([[60, 60, 60, 3, 4]])
    table = model.adapter.table()
    before = model.next_item_states(history, table)
    with torch.no_grad():
        model.adapter.position[:3] += 1.0
    torch.testing.assert_close(model.next_item_states(history, table), before, rtol=0, atol=0)
    with torch.no_grad():
        model.adapter.position[3] += torch.arange(4.0)
    assert not torch.allclose(model.next_item_states(history, table), before, atol=1e-4)


def test_llm_esr_drops_elements_of_both_views_in_training_only(make: Make) -> None:
    adapter = make("llm_esr", dropout=0.5).adapter.train()
    seen: list[torch.Tensor] = []
    adapter.to_ids.register_forward_pre_hook(lambda module, given: seen.extend(given[:2]))
    layout = Layout(torch.ones(200, 5, dtype=torch.bool), causal=True)
    x = torch.ones(1000, 8)
    adapter.mix(x, layout)
    whole = 2 * x[:, :4] + adapter.position[layout.position]
    for view in seen:
        kept = view != 0
        assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.04)
        torch.testing.assert_close(view[kept], 2 * whole[kept])
    assert not torch.equal(seen[0] != 0, seen[1] != 0)
    seen.clear()
    adapter.eval().mix(x, layout)
    for view in seen:
        torch.testing.assert_close(view, whole)
