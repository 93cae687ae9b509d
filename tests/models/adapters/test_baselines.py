"""The eight baselines against closed forms, float64 references and their authors' own routes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import erf
from sklearn.decomposition import PCA

from common.errors import UserError
from models.core.adapter import Spectrum
from models.core.layout import Layout
from models.core.recommender import Recommender

Make = Callable[..., Recommender]
Decompose = Callable[[np.ndarray], Spectrum]


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def steps(model: Recommender, sequences: torch.Tensor, count: int = 3) -> None:
    optimiser = torch.optim.Adam(model.parameter_groups(0.0), lr=1e-2)
    draws = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    model.train()
    for _ in range(count):
        loss, _ = model.loss(sequences, draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_spectrum_gives_the_embeddings_back(spectrum: Spectrum, embeddings: np.ndarray) -> None:
    np.testing.assert_allclose(numbers(spectrum.embeddings()), embeddings, atol=1e-6)
    np.testing.assert_allclose(numbers(spectrum.centred.embeddings()), embeddings, atol=1e-6)


# Base


def test_base_table_is_the_embedding_weight_itself(make: Make) -> None:
    adapter = make("base").adapter
    assert adapter.table() is adapter.id_embedding
    assert float(make("base", dim=64, id_std=0.5).adapter.table().detach().std()) == pytest.approx(0.5, rel=0.05)


# MoRec


def test_morec_is_gelu_of_a_linear_map(make: Make, embeddings: np.ndarray) -> None:
    adapter = make("morec").adapter
    torch.nn.init.normal_(adapter.dense.bias)
    z = embeddings @ numbers(adapter.dense.weight).T + numbers(adapter.dense.bias)
    np.testing.assert_allclose(numbers(adapter.table()), z * (1 + erf(z / np.sqrt(2))) / 2, atol=1e-6)


def test_morec_entries_stay_above_the_minimum_of_gelu(make: Make, sequences: torch.Tensor) -> None:
    model = make("morec")
    steps(model, sequences, 30)
    table = model.adapter.table().detach()
    assert float(table.min()) >= -0.1700
    assert float(table.max()) > 0.1700, "the table has moved"


@pytest.mark.parametrize("adapter", ["morec", "unisrec", "rlmrec", "whitenrec"])
def test_fusion_adds_or_concatenates_the_same_text(make: Make, adapter: str) -> None:
    added = make(adapter, fusion="add").adapter.eval()
    torch.testing.assert_close(added.table(), added.id_embedding + added.semantic_table())
    beside = make(adapter, fusion="concat").adapter.eval()
    torch.testing.assert_close(beside.table()[:, :4], beside.id_embedding)
    torch.testing.assert_close(beside.table()[:, 4:], beside.semantic_table())
    assert beside.semantic_table().abs().sum() > 0


# UniSRec


def test_unisrec_gates_start_at_one_eighth(make: Make) -> None:
    assert torch.equal(make("unisrec").adapter.eval().gates(), torch.full((60, 8), 1 / 8))


def test_unisrec_noise_and_dropout_act_in_training_only(make: Make) -> None:
    adapter = make("unisrec").adapter.eval()
    assert torch.equal(adapter.table(), adapter.table())
    adapter.train()
    assert not torch.equal(adapter.table(), adapter.table())
    assert not torch.equal(adapter.gates(), adapter.gates())


@pytest.mark.parametrize(("weight", "deviation"), [(0.0, np.log(2) + 0.01), (-1e3, 0.01)])
def test_unisrec_gate_noise_has_the_authors_deviation(make: Make, spectrum: Spectrum, weight: float, deviation: float) -> None:
    """Logits start as pure noise of deviation ln 2 + 0.01; where x W_n is far below zero, 0.01 is left."""
    adapter = make("unisrec").adapter.train()
    with torch.no_grad():
        adapter.gate_noise.copy_(weight * spectrum.centred.mean[:, None].expand(-1, 8))
    torch.manual_seed(0)
    logits = torch.stack([adapter.gates().detach().log() for _ in range(200)])
    differences = logits[..., 0] - logits[..., 1]
    assert float(differences.std()) == pytest.approx(2**0.5 * deviation, rel=0.03)


def test_unisrec_is_the_gated_sum_of_its_experts(make: Make, embeddings: np.ndarray, sequences: torch.Tensor) -> None:
    model = make("unisrec", experts=3)
    steps(model, sequences)
    adapter = model.adapter.eval()
    weight, bias = numbers(adapter.weight), numbers(adapter.bias)
    logits = np.exp(embeddings @ numbers(adapter.gate))
    gates = logits / logits.sum(1, keepdims=True)
    expected = sum(gates[:, [e]] * ((embeddings - bias[e]) @ weight[:, e]) for e in range(3))
    assert np.abs(bias).min(1).max() > 0, "the biases have moved"
    np.testing.assert_allclose(numbers(adapter.semantic_table()), expected, atol=1e-6)


# RLMRec


def test_rlmrec_projects_by_two_layers_with_a_leaky_relu(make: Make, embeddings: np.ndarray) -> None:
    adapter = make("rlmrec").adapter
    inner = embeddings @ numbers(adapter.inner.weight).T + numbers(adapter.inner.bias)
    expected = np.where(inner > 0, inner, 0.01 * inner) @ numbers(adapter.outer.weight).T + numbers(adapter.outer.bias)
    np.testing.assert_allclose(numbers(adapter.semantic_table()), expected, atol=1e-6)


@pytest.mark.parametrize("fusion", ["id", "add", "concat"])
def test_rlmrec_loss_is_one_minus_the_mean_cosine_of_all_items(make: Make, fusion: str) -> None:
    adapter = make("rlmrec", fusion=fusion, beta=1.0).adapter
    adapter.table()
    text, ids = numbers(adapter.project()), numbers(adapter.id_embedding)
    cosines = (text * ids).sum(1) / np.linalg.norm(text, axis=1) / np.linalg.norm(ids, axis=1)
    loss = adapter.auxiliary_loss()
    assert loss.item() == pytest.approx(1 - cosines.mean(), abs=1e-6)
    assert 0 <= loss.item() <= 2


@pytest.mark.parametrize(("scale", "expected"), [(3.0, 0.0), (-0.1, 2.0)])
def test_rlmrec_loss_is_zero_where_ids_point_along_the_text_and_two_where_against(
    make: Make, scale: float, expected: float
) -> None:
    adapter = make("rlmrec", beta=1.0).adapter
    with torch.no_grad():
        adapter.id_embedding.copy_(scale * adapter.project())
    adapter.table()
    assert adapter.auxiliary_loss().item() == pytest.approx(expected, abs=1e-6)


def test_rlmrec_without_its_loss_and_without_fusion_is_base(make: Make, sequences: torch.Tensor) -> None:
    ours, base = make("rlmrec", fusion="id", beta=0.0), make("base")
    for model in (ours, base):
        steps(model, sequences)
    assert torch.equal(ours.adapter.table(), base.adapter.table())
    for (name, mine), (_, theirs) in zip(ours.backbone.named_parameters(), base.backbone.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_rlmrec_loss_is_weighted_and_added(make: Make, sequences: torch.Tensor) -> None:
    def loss(beta: float) -> float:
        model = make("rlmrec", beta=beta).eval()
        return float(model.loss(sequences, torch.Generator().manual_seed(0))[0])

    adapter = make("rlmrec").adapter
    assert loss(0.5) - loss(0.0) == pytest.approx(0.5 * float(adapter.misalignment(adapter.project())), abs=1e-5)


# LLM-ESR


def test_llm_esr_ids_start_as_principal_component_scores(make: Make, embeddings: np.ndarray) -> None:
    scores = PCA(4, svd_solver="full").fit_transform(embeddings)
    ours = numbers(make("llm_esr").adapter.id_embedding)
    np.testing.assert_allclose(np.abs(ours), np.abs(scores), atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sign(ours * scores).sum(0)), len(scores))


def test_llm_esr_semantic_view_is_linear_of_rank_half_dim(make: Make, embeddings: np.ndarray, decompose: Decompose) -> None:
    """f(a + b) - f(b) = f(a) - f(0), and the two layers are one matrix of rank d / 2 at most."""
    adapter = make("llm_esr").adapter

    def f(x: np.ndarray) -> np.ndarray:
        adapter.E = torch.from_numpy(x).float()
        return numbers(adapter.semantic_table())

    a, b = embeddings, embeddings[::-1].copy()
    np.testing.assert_allclose(f(a + b) - f(b), f(a) - f(np.zeros_like(a)), atol=1e-5)
    layered = adapter.outer(adapter.inner(torch.from_numpy(a).float()))
    np.testing.assert_allclose(f(a), numbers(layered), atol=1e-5)
    centred = f(a) - f(a).mean(0)
    assert np.linalg.matrix_rank(centred, tol=1e-4) <= 4


def test_llm_esr_without_cross_attention_is_a_plain_concatenation(make: Make, sequences: torch.Tensor) -> None:
    model = make("llm_esr", cross_attention=False)
    adapter = model.adapter
    expected = torch.cat([adapter.id_embedding, adapter.outer(adapter.inner(adapter.E))], dim=1)
    torch.testing.assert_close(adapter.table(), expected)
    x = torch.randn(10, 8)
    assert adapter.mix(x, Layout(torch.ones(2, 5, dtype=torch.bool), causal=True)) is x


def test_llm_esr_mixes_by_two_cross_attentions_without_a_residual(make: Make) -> None:
    """Against a float64 softmax written out; hidden positions have no weight."""
    adapter = make("llm_esr").adapter
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

    ids, text = np.split(numbers(x), 2, axis=1)
    joined = np.hstack([crossed(adapter.to_ids, text, ids), crossed(adapter.to_text, ids, text)])
    expected = joined @ numbers(adapter.join.weight).T + numbers(adapter.join.bias)
    np.testing.assert_allclose(numbers(adapter.mix(x, layout)), expected, atol=1e-6)


# WhitenRec


def test_whitenrec_input_has_mean_zero_and_identity_covariance(make: Make, spectrum: Spectrum) -> None:
    whitened = numbers(make("whitenrec", whiten_rank=spectrum.centred.rank).adapter.whitened)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.cov(whitened, rowvar=False), np.eye(whitened.shape[1]), atol=1e-3)


def test_whitenrec_input_is_zca_up_to_a_rotation(make: Make, embeddings: np.ndarray) -> None:
    """Same inner products between items as X P Lambda^(-1/2) P^T of the covariance's eigenvectors."""
    values, vectors = np.linalg.eigh(np.cov(embeddings, rowvar=False))
    zca = (embeddings - embeddings.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T
    whitened = numbers(make("whitenrec", whiten_rank=24).adapter.whitened)
    np.testing.assert_allclose(whitened @ whitened.T, zca @ zca.T, atol=1e-3)


def test_whitenrec_input_does_not_depend_on_the_scale_of_the_embeddings(
    make: Make, embeddings: np.ndarray, decompose: Decompose
) -> None:
    mine = make("whitenrec").adapter.whitened
    scaled = make("whitenrec", on=decompose(embeddings * 40)).adapter.whitened
    np.testing.assert_allclose(numbers(scaled), numbers(mine), atol=1e-4)


def test_whitenrec_keeps_a_quarter_of_the_items_at_most(make: Make, spectrum: Spectrum) -> None:
    assert make("whitenrec").adapter.report() == {"whiten_rank": 15}  # 60 items, centred rank 24
    assert make("whitenrec", whiten_rank=24).adapter.report() == {"whiten_rank": 24}
    with pytest.raises(UserError, match=r"whiten_rank is 25, but the centred embeddings have rank 24"):
        make("whitenrec", whiten_rank=25)


def test_whitenrec_heads(make: Make) -> None:
    linear = make("whitenrec", head="linear").adapter
    z = numbers(linear.whitened) @ numbers(linear.head[0].weight).T
    np.testing.assert_allclose(numbers(linear.table()), z * (1 + erf(z / np.sqrt(2))) / 2, atol=1e-6)
    mlp = make("whitenrec").adapter.eval()
    first = np.maximum(numbers(mlp.whitened) @ numbers(mlp.head[1].weight).T, 0)
    np.testing.assert_allclose(numbers(mlp.table()), np.maximum(first @ numbers(mlp.head[4].weight).T, 0), atol=1e-6)
    assert not torch.equal(mlp.train().table(), mlp.table())


# LLMInit


def test_llminit_starts_as_the_most_variable_columns_in_order(make: Make, embeddings: np.ndarray) -> None:
    adapter = make("llminit").adapter
    columns = adapter.columns.numpy()
    assert (np.diff(columns) > 0).all()
    np.testing.assert_allclose(numbers(adapter.table()), embeddings[:, columns], atol=1e-6)
    variance = embeddings.var(0)
    assert variance[columns].min() >= np.delete(variance, columns).max()


def test_llminit_can_be_rescaled_by_one_factor(make: Make) -> None:
    raw, scaled = make("llminit").adapter.table(), make("llminit", std=0.02).adapter.table()
    assert scaled.std().item() == pytest.approx(0.02, rel=1e-5)
    ratio = scaled / raw
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_llminit_trains_its_whole_table(make: Make, sequences: torch.Tensor) -> None:
    model = make("llminit")
    before = model.adapter.table().detach().clone()
    steps(model, sequences, 20)
    assert (model.adapter.table() != before).float().mean() > 0.95


# AlphaFuse


def test_alphafuse_semantics_are_the_authors_standardised_components(make: Make, embeddings: np.ndarray) -> None:
    """(X - mean) P Lambda^(-1/2) of X = 40 E by the SVD of np.cov, columnwise up to sign."""
    x = 40 * embeddings
    vectors, values, _ = np.linalg.svd(np.cov(x, rowvar=False))
    theirs = (x - x.mean(0)) @ vectors[:, :8] / np.sqrt(values[:8])
    ours = numbers(make("alphafuse").adapter.semantics)
    correlation = np.corrcoef(ours, theirs, rowvar=False)[:8, 8:].diagonal()
    np.testing.assert_allclose(np.abs(correlation), 1, atol=1e-6)
    np.testing.assert_allclose(ours * np.sign(correlation), theirs, atol=1e-4)


def test_alphafuse_semantics_have_identity_covariance_and_mean_zero(make: Make) -> None:
    semantics = numbers(make("alphafuse").adapter.semantics)
    np.testing.assert_allclose(np.cov(semantics, rowvar=False), np.eye(8), atol=1e-4)
    np.testing.assert_allclose(semantics.mean(0), 0, atol=1e-6)


@pytest.mark.parametrize(("null_share", "frozen"), [(0.25, 6), (0.5, 4), (0.75, 2), (1.0, 0)])
def test_alphafuse_trains_the_null_columns_only(make: Make, sequences: torch.Tensor, null_share: float, frozen: int) -> None:
    model = make("alphafuse", null_share=null_share)
    assert torch.equal(model.adapter.table(), model.adapter.semantics), "with zeros the table starts as S"
    steps(model, sequences, 10)
    moved = (model.adapter.table() != model.adapter.semantics).any(dim=0)
    assert moved.tolist() == [False] * frozen + [True] * (8 - frozen)


def test_alphafuse_ids_can_start_normal(make: Make) -> None:
    ids = make("alphafuse", dim=16, id_init="normal").adapter.id_embedding
    assert float(ids.std()) == pytest.approx(1, rel=0.1)
