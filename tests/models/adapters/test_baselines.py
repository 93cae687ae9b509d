"""The eight baselines, compared with closed forms, float64 references and the authors' computations."""

from collections.abc import Callable
from dataclasses import replace

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


# sqrt(l) E


@pytest.mark.parametrize("adapter", ["morec", "unisrec", "rlmrec", "llm_esr"])
def test_layers_on_the_text_read_entries_of_root_mean_square_one(make: Make, embeddings: np.ndarray, adapter: str) -> None:
    """Entries of unit rows with 24 columns have a root mean square of 1 / sqrt(24)."""
    read = numbers(make(adapter).adapter.E)
    np.testing.assert_allclose(read, np.sqrt(24) * embeddings, atol=1e-5)
    assert np.sqrt((read**2).mean()) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(numbers(make(adapter, input_scale="unit").adapter.E), embeddings, atol=1e-6)


# Base


def test_base_table_is_the_embedding_weight_itself(make: Make) -> None:
    adapter = make("base").adapter
    assert adapter.table() is adapter.id_embedding
    assert float(make("base", dim=64, id_std=0.5).adapter.table().detach().std()) == pytest.approx(0.5, rel=0.05)


# MoRec


def test_morec_is_gelu_of_a_linear_map(make: Make, embeddings: np.ndarray) -> None:
    adapter = make("morec").adapter
    torch.nn.init.normal_(adapter.dense.bias)
    z = np.sqrt(24) * embeddings @ numbers(adapter.dense.weight).T + numbers(adapter.dense.bias)
    np.testing.assert_allclose(numbers(adapter.table()), z * (1 + erf(z / np.sqrt(2))) / 2, atol=1e-5)


def test_morec_entries_stay_above_the_minimum_of_gelu(make: Make, sequences: torch.Tensor) -> None:
    model = make("morec")
    steps(model, sequences, 30)
    table = model.adapter.table().detach()
    assert float(table.min()) >= -0.1700
    assert float(table.max()) > 0.1700, "the table has moved"


@pytest.mark.parametrize("adapter", ["morec", "unisrec", "rlmrec", "whitenrec", "spectran"])
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
    """Logits are initially noise with standard deviation ln 2 + 0.01; if x W_n is far below zero, it is 0.01."""
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
    x = np.sqrt(24) * embeddings
    logits = np.exp(x @ numbers(adapter.gate))
    gates = logits / logits.sum(1, keepdims=True)
    expected = sum(gates[:, [e]] * ((x - bias[e]) @ weight[:, e]) for e in range(3))
    assert np.abs(bias).min(1).max() > 0, "the biases have moved"
    np.testing.assert_allclose(numbers(adapter.semantic_table()), expected, atol=1e-5)


# RLMRec


def test_rlmrec_projects_by_two_layers_with_a_leaky_relu(make: Make, embeddings: np.ndarray) -> None:
    adapter = make("rlmrec").adapter
    inner = np.sqrt(24) * embeddings @ numbers(adapter.projection[0].weight).T + numbers(adapter.projection[0].bias)
    leaky = np.where(inner > 0, inner, 0.01 * inner)
    expected = leaky @ numbers(adapter.projection[2].weight).T + numbers(adapter.projection[2].bias)
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


@pytest.mark.parametrize("fusion", ["id", "add", "concat"])
def test_rlmrec_can_reconstruct_the_text_from_the_ids(make: Make, embeddings: np.ndarray, fusion: str) -> None:
    """1 - mean cos(g(e_i), s_i) over the items, g: d_s -> (l + d_s) // 2 -> l, in float64 from the unit rows."""
    adapter = make("rlmrec", objective="gen", fusion=fusion, beta=1.0).adapter
    width = 4 if fusion == "concat" else 8
    first, _, second = adapter.reconstruction
    assert [tuple(layer.weight.shape) for layer in (first, second)] == [((24 + width) // 2, width), (24, (24 + width) // 2)]
    inner = numbers(adapter.id_embedding) @ numbers(first.weight).T + numbers(first.bias)
    projected = np.where(inner > 0, inner, 0.01 * inner) @ numbers(second.weight).T + numbers(second.bias)
    cosines = (projected * embeddings).sum(1) / np.linalg.norm(projected, axis=1)
    adapter.table()
    assert adapter.auxiliary_loss().item() == pytest.approx(1 - cosines.mean(), abs=1e-6)
    assert adapter.report()["misalignment"] == pytest.approx(1 - cosines.mean(), abs=1e-6)


def test_rlmrec_reconstruction_improves_by_its_own_loss(make: Make) -> None:
    """IDs with 8 columns can distinguish 60 items, so the loss must fall far below that of one direction for all items."""
    adapter = make("rlmrec", objective="gen", fusion="id", beta=1.0).adapter.train()
    optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    centre = numbers(adapter.E).mean(0)
    one_direction = 1 - (numbers(adapter.E) @ centre / np.linalg.norm(numbers(adapter.E), axis=1) / np.linalg.norm(centre)).mean()
    for _ in range(200):
        optimiser.zero_grad()
        adapter.table()
        adapter.auxiliary_loss().backward()
        optimiser.step()
    assert adapter.report()["misalignment"] < one_direction / 2


@pytest.mark.parametrize("fusion", ["id", "add", "concat"])
@pytest.mark.parametrize("objective", ["con", "gen"])
def test_rlmrec_trains_every_parameter_it_has(
    make: Make, sequences: torch.Tensor, generator: torch.Generator, fusion: str, objective: str
) -> None:
    model = make("rlmrec", fusion=fusion, objective=objective).train()
    model.loss(sequences, generator)[0].backward()
    for name, parameter in model.adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


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
    actual, base = make("rlmrec", fusion="id", beta=0.0), make("base")
    for model in (actual, base):
        steps(model, sequences)
    assert torch.equal(actual.adapter.table(), base.adapter.table())
    for (name, parameter), (_, reference) in zip(
        actual.backbone.named_parameters(), base.backbone.named_parameters(), strict=True
    ):
        assert torch.equal(parameter, reference), name


def test_rlmrec_loss_is_weighted_and_added(make: Make, sequences: torch.Tensor) -> None:
    def loss(beta: float) -> float:
        model = make("rlmrec", beta=beta).eval()
        return float(model.loss(sequences, torch.Generator().manual_seed(0))[0])

    adapter = make("rlmrec").adapter
    assert loss(0.5) - loss(0.0) == pytest.approx(0.5 * float(adapter.misalignment(adapter.project())), abs=1e-5)


# LLM-ESR


def test_llm_esr_ids_start_as_principal_component_scores(make: Make, embeddings: np.ndarray) -> None:
    scores = PCA(4, svd_solver="full").fit_transform(embeddings)
    actual = numbers(make("llm_esr").adapter.id_embedding)
    np.testing.assert_allclose(np.abs(actual), np.abs(scores), atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sign(actual * scores).sum(0)), len(scores))


def test_llm_esr_semantic_view_is_linear_of_rank_half_dim(make: Make, embeddings: np.ndarray, decompose: Decompose) -> None:
    """f(a + b) - f(b) = f(a) - f(0), and the two layers are one matrix of rank at most d / 2."""
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


# WhitenRec


def test_whitenrec_input_has_mean_zero_and_identity_covariance(make: Make, spectrum: Spectrum) -> None:
    whitened = numbers(make("whitenrec", whiten_rank=spectrum.centred.rank).adapter.whitened)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.cov(whitened, rowvar=False), np.eye(whitened.shape[1]), atol=1e-3)


def test_whitenrec_input_is_zca_up_to_a_rotation(make: Make, embeddings: np.ndarray) -> None:
    """The inner products between items are those of X P Lambda^(-1/2) P^T, with the eigenvectors P of the covariance."""
    values, vectors = np.linalg.eigh(np.cov(embeddings, rowvar=False))
    zca = (embeddings - embeddings.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T
    whitened = numbers(make("whitenrec", whiten_rank=24).adapter.whitened)
    np.testing.assert_allclose(whitened @ whitened.T, zca @ zca.T, atol=1e-3)


def test_whitenrec_input_does_not_depend_on_the_scale_of_the_embeddings(
    make: Make, embeddings: np.ndarray, decompose: Decompose
) -> None:
    actual = make("whitenrec").adapter.whitened
    scaled = make("whitenrec", on=decompose(embeddings * 40)).adapter.whitened
    np.testing.assert_allclose(numbers(scaled), numbers(actual), atol=1e-4)


@pytest.mark.parametrize(("items", "rank"), [(60, 24), (49, 24), (48, 12), (20, 5), (3, 1)])
def test_whitenrec_keeps_the_centred_rank_but_a_quarter_of_a_small_catalogue(
    make: Make, embeddings: np.ndarray, decompose: Decompose, items: int, rank: int
) -> None:
    """Embeddings have 24 columns: 49 items are more than twice as many, 48 are not."""
    assert make("whitenrec", on=decompose(embeddings[:items])).adapter.report() == {"whiten_rank": rank}


def test_whitenrec_rank_can_be_chosen_up_to_the_centred_rank(make: Make) -> None:
    assert make("whitenrec", whiten_rank=5).adapter.report() == {"whiten_rank": 5}
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


@pytest.mark.parametrize(("share", "count"), [(0.2, 12), (0.05, 3), (0.001, 2), (1.0, 60)])
def test_llminit_can_take_variances_over_the_most_popular_items(
    make: Make, spectrum: Spectrum, embeddings: np.ndarray, share: float, count: int
) -> None:
    """The most popular items have the highest ids; numpy's variances over them choose the columns."""
    popular = replace(spectrum, load_popularity=lambda: torch.arange(60))
    columns = make("llminit", on=popular, popular_share=share).adapter.columns.tolist()
    variance = embeddings[60 - count :].var(0)
    assert columns == sorted(np.argsort(variance)[-8:].tolist())
    assert (columns == make("llminit").adapter.columns.tolist()) == (count == 60)


def test_llminit_takes_the_first_of_equally_popular_items(make: Make, spectrum: Spectrum, embeddings: np.ndarray) -> None:
    counts = torch.full((60,), 5)
    counts[40] = 6
    popular = replace(spectrum, load_popularity=lambda: counts)
    columns = make("llminit", on=popular, popular_share=0.1).adapter.columns.tolist()
    assert columns == sorted(np.argsort(embeddings[[40, 0, 1, 2, 3, 4]].var(0))[-8:].tolist())


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
    """Compared with (X - mean) P Lambda^(-1/2) of X = 40 E by the SVD of np.cov, up to the signs of columns."""
    x = 40 * embeddings
    vectors, values, _ = np.linalg.svd(np.cov(x, rowvar=False))
    reference = (x - x.mean(0)) @ vectors[:, :8] / np.sqrt(values[:8])
    actual = numbers(make("alphafuse").adapter.semantics)
    correlation = np.corrcoef(actual, reference, rowvar=False)[:8, 8:].diagonal()
    np.testing.assert_allclose(np.abs(correlation), 1, atol=1e-6)
    np.testing.assert_allclose(actual * np.sign(correlation), reference, atol=1e-4)


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
