"""RLMRec, compared with float64 references of its projection and losses."""

import numpy as np
import pytest
import torch

from tests.models.conftest import Make, numbers, steps


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
        return model.loss(sequences, torch.Generator().manual_seed(0))[0].item()

    adapter = make("rlmrec").adapter
    assert loss(0.5) - loss(0.0) == pytest.approx(0.5 * float(adapter.misalignment(adapter.project())), abs=1e-5)
