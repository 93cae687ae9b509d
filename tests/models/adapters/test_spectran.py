"""SpecTran, compared with the paper's equations; its ablations; and its learned threshold."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from models.core.adapter import Spectrum
from pipeline.training.loop import evaluate_ranks
from tests.models.conftest import Decompose, Make, numbers


def test_forward_is_equations_7_to_11(make: Make, spectrum: Spectrum) -> None:
    """Compared with a float64 computation, with a threshold that sets some entries to zero."""
    adapter = make("spectran", order=2).adapter
    with torch.no_grad():
        adapter.threshold.fill_(0.02)
        adapter.alpha.copy_(torch.tensor([0.5, -1.0, 2.0]))
    U, sigma = numbers(spectrum.U), numbers(spectrum.sigma)
    product = numbers(adapter.query) @ numbers(adapter.key).T
    phi = np.sign(product) * np.maximum(np.abs(product) - 0.02, 0)
    assert 0.05 < (phi == 0).mean() < 0.95
    x = sigma[:8] / sigma[0]
    W = phi.copy()
    W[:, :8] += np.diag(sigma[0] * (0.5 - x + 2 * x**2))
    np.testing.assert_allclose(numbers(adapter.semantic_table()), U @ W.T, atol=1e-6)
    np.testing.assert_allclose(numbers(adapter.table()), numbers(adapter.id_embedding) + U @ W.T, atol=1e-6)


@pytest.mark.parametrize(("fusion", "width"), [("none", 8), ("concat", 4)])
def test_without_added_ids_the_text_is_the_table_or_its_right_half(
    make: Make, spectrum: Spectrum, fusion: str, width: int
) -> None:
    """Return E_s by Equations 7 to 11 for `width` columns, in float64; the threshold sets some entries to zero."""
    adapter = make("spectran", fusion=fusion).adapter
    with torch.no_grad():
        adapter.threshold.fill_(0.01)
    U, sigma = numbers(spectrum.U), numbers(spectrum.sigma)
    assert adapter.query.shape == (width, width)
    assert adapter.key.shape == (24, width)
    product = numbers(adapter.query) @ numbers(adapter.key).T
    W = np.sign(product) * np.maximum(np.abs(product) - 0.01, 0)
    x = sigma[:width] / sigma[0]
    W[:, :width] += np.diag(sigma[0] * (1 + x + x**2 + x**3))
    table = numbers(adapter.table())
    np.testing.assert_allclose(table[:, 8 - width :], U @ W.T, atol=1e-6)
    if fusion == "none":
        assert not hasattr(adapter, "id_embedding")
    else:
        np.testing.assert_array_equal(table[:, :4], numbers(adapter.id_embedding))


def test_principal_sigma_without_attention_is_the_projection_on_v(make: Make, embeddings: np.ndarray, spectrum: Spectrum) -> None:
    adapter = make("spectran", variant="principal_sigma").adapter.double()
    with torch.no_grad():
        adapter.threshold.fill_(1e3)
    expected = embeddings @ numbers(spectrum.V)[:, :8]
    assert np.abs(numbers(adapter.semantic_table()) - expected).max() < 1e-6 * np.abs(expected).max()


def test_principal_identity_without_attention_is_the_leading_columns_of_u(make: Make, spectrum: Spectrum) -> None:
    adapter = make("spectran", variant="principal_identity").adapter
    with torch.no_grad():
        adapter.threshold.fill_(1e3)
    torch.testing.assert_close(adapter.semantic_table(), spectrum.U[:, :8])


def test_centred_identity_times_root_n_is_alphafuse(make: Make) -> None:
    adapter = make("spectran", variant="principal_identity", center=True).adapter
    with torch.no_grad():
        adapter.threshold.fill_(1e3)
    torch.testing.assert_close(adapter.semantic_table() * 59**0.5, make("alphafuse").adapter.semantics)


def test_without_attention_scales_the_leading_columns(make: Make, spectrum: Spectrum) -> None:
    adapter = make("spectran", variant="without_attention").adapter
    torch.testing.assert_close(adapter.semantic_table(), spectrum.U[:, :8] * adapter.principal())


def test_without_encoding_is_attention_alone(make: Make, spectrum: Spectrum) -> None:
    adapter = make("spectran", variant="without_encoding").adapter
    torch.testing.assert_close(adapter.semantic_table(), spectrum.U @ adapter.attention().T)


def test_threshold_zero_keeps_everything_and_a_large_one_nothing(make: Make, spectrum: Spectrum) -> None:
    adapter = make("spectran").adapter
    product = adapter.query @ adapter.key.T
    torch.testing.assert_close(adapter.attention(), product, rtol=0, atol=0)
    with torch.no_grad():
        adapter.threshold.copy_(product.abs().max())
    assert not adapter.attention().any()
    torch.testing.assert_close(adapter.semantic_table(), spectrum.U[:, :8] * adapter.principal())
    assert adapter.report()["zero_share"] == 1.0


def test_soft_shrinkage_is_torchs(make: Make) -> None:
    adapter = make("spectran").adapter
    with torch.no_grad():
        adapter.threshold.fill_(0.03)
    torch.testing.assert_close(adapter.attention(), torch.nn.functional.softshrink(adapter.query @ adapter.key.T, 0.03))


def test_threshold_has_a_gradient_at_zero(make: Make) -> None:
    """d sum(phi * G) / d lambda = -sum(sign(P) G) if no entry is set to zero."""
    adapter = make("spectran").adapter.train()
    weight = torch.randn(8, 24)
    (adapter.attention() * weight).sum().backward()
    expected = -((adapter.query @ adapter.key.T).sign() * weight).sum()
    torch.testing.assert_close(adapter.threshold.grad, expected.detach(), rtol=1e-4, atol=1e-5)
    assert adapter.threshold.grad != 0


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_threshold_grows_where_that_helps_and_never_falls_below_zero(make: Make, direction: float) -> None:
    adapter = make("spectran").adapter.train()
    optimiser = torch.optim.Adam([adapter.threshold], lr=1e-3)
    for _ in range(100):
        optimiser.zero_grad()
        phi = adapter.attention()
        assert adapter.threshold >= 0
        (direction * phi.abs().sum()).backward()
        optimiser.step()
    adapter.attention()
    if direction > 0:
        assert 0.04 < adapter.threshold <= 0.1, "it stops where nothing is left to cut"
    else:
        assert float(adapter.threshold.detach()) == 0


def test_a_threshold_below_zero_counts_as_zero_and_is_mended_before_it_is_saved(make: Make, sequences: torch.Tensor) -> None:
    model = make("spectran")
    expected = model.adapter.attention()
    with torch.no_grad():
        model.adapter.threshold.fill_(-0.001)
    evaluate_ranks(model, sequences[:, 1:], sequences[:, -1])
    assert model.state_dict()["adapter.threshold"] == 0
    assert torch.equal(model.adapter.attention(), expected)
    assert model.adapter.report()["threshold"] == 0


def test_weight_decay_spares_threshold_and_alpha(make: Make) -> None:
    model = make("spectran")
    decayed, spared = model.parameter_groups(0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert {id(p) for p in spared["params"]} == {id(model.adapter.threshold), id(model.adapter.alpha)}


def test_weight_decay_can_act_on_threshold_and_alpha_too(make: Make) -> None:
    """With a zero gradient, one step of Adam changes a parameter if and only if it has weight decay."""
    for decay_all in (False, True):
        model = make("spectran", decay_all=decay_all)
        learned = (model.adapter.threshold, model.adapter.alpha)
        with torch.no_grad():
            model.adapter.threshold.fill_(0.5)
        before = [parameter.detach().clone() for parameter in learned]
        optimiser = torch.optim.Adam(model.parameter_groups(0.1), lr=1e-3)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        moved = [not torch.equal(parameter, old) for parameter, old in zip(learned, before, strict=True)]
        assert moved == [decay_all, decay_all]


def test_encoding_at_the_start(make: Make, spectrum: Spectrum) -> None:
    """D_1 = sigma_1 * (n + 1), D_i >= sigma_1 for alpha = 1, and one polynomial per dimension starts as the shared one."""
    shared, per_dim = make("spectran").adapter, make("spectran", alpha="per_dim").adapter
    torch.testing.assert_close(shared.principal()[0], 4 * spectrum.sigma[0])
    assert (shared.principal() >= spectrum.sigma[0]).all()
    assert (shared.principal().diff() <= 0).all(), "it decreases with the spectrum"
    torch.testing.assert_close(per_dim.principal(), shared.principal(), rtol=0, atol=0)
    torch.testing.assert_close(make("spectran", order=0).adapter.principal(), spectrum.sigma[0].expand(8))


def test_flipped_singular_vectors_with_flipped_weights_give_the_same_table(make: Make, spectrum: Spectrum) -> None:
    signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], size=24)).float()
    flipped = Spectrum(spectrum.U * signs, spectrum.sigma, spectrum.V * signs, spectrum.mean, spectrum.load_centred)
    original, adapted = make("spectran").adapter, make("spectran", on=flipped).adapter
    with torch.no_grad():
        adapted.key.copy_(original.key * signs[:, None])
        for adapter in (original, adapted):
            adapter.threshold.fill_(0.01)
    assert 0 < float((original.attention() == 0).float().mean()) < 1, "softshrink acts"
    principal = torch.nn.functional.pad(original.principal().diag(), (0, 16))
    weights = adapted.attention() + principal * signs
    torch.testing.assert_close(flipped.U @ weights.T, original.semantic_table(), rtol=1e-5, atol=1e-6)


def test_centred_spectrum_is_read_where_it_is_asked_for(make: Make, spectrum: Spectrum) -> None:
    assert torch.equal(make("spectran", center=True).adapter.U, spectrum.centred.U)
    assert torch.equal(make("spectran").adapter.U, spectrum.U)


def test_spectrum_is_frozen(make: Make) -> None:
    adapter = make("spectran").adapter
    adapter.table().sum().backward()
    assert not adapter.U.requires_grad
    assert not adapter.sigma.requires_grad
    assert not {"U", "sigma"} & set(adapter.state_dict())


def test_report_gives_the_weights_of_table_6(make: Make) -> None:
    adapter = make("spectran").adapter
    phi, D = numbers(adapter.attention()), numbers(adapter.principal())
    report = adapter.report()
    assert report["principal_weight"] == pytest.approx(np.mean(D + phi.diagonal()), rel=1e-5)
    assert report["subordinate_weight"] == pytest.approx(np.abs(phi[:, 8:]).sum(1).mean(), rel=1e-5)
    assert report["zero_share"] == 0
    np.testing.assert_allclose(report["principal"], D, rtol=1e-6)


def test_initial_attention_has_the_papers_size(make: Make, decompose: Decompose) -> None:
    """Entries of Q K^T have standard deviation 0.01 sqrt(d), and their mean absolute value is sqrt(2 / pi) times that."""
    rows = np.random.default_rng(0).normal(size=(400, 300))
    phi = make("spectran", on=decompose(rows), dim=128).adapter.attention()
    assert float(phi.detach().std()) == pytest.approx(0.01 * 128**0.5, rel=0.05)
    assert float(phi.detach().abs().mean()) == pytest.approx(0.0903, rel=0.05)


def test_dim_above_the_rank_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"^adapter spectran: dim is 32, but the embeddings have rank 24"):
        make("spectran", dim=32)
