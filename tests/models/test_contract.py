"""The contract of every registered adapter on every registered backbone."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.core.adapter import Spectrum
from models.core.layout import Layout
from models.core.loss import normalised
from models.core.recommender import Recommender
from pipeline.training.loop import evaluate_ranks

Make = Callable[..., Recommender]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"))]

every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def a_few_steps(model: Recommender, sequences: torch.Tensor, steps: int = 3) -> None:
    """Move the weights away from their initial values, where zeros and ties could hide a mistake."""
    optimiser = torch.optim.Adam(model.parameter_groups(0.0), lr=1e-2)
    draws = torch.Generator(sequences.device).manual_seed(7)
    model.train()
    for _ in range(steps):
        loss, _ = model.loss(sequences, draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@every_adapter
def test_table_has_a_row_for_every_item_and_dim_columns(make: Make, spectrum: Spectrum, adapter: str) -> None:
    model = make(adapter).adapter
    assert model.table().shape == (spectrum.n_items, 8)
    text = model.semantic_table()
    assert text is None or (len(text) == spectrum.n_items and text.shape[1] in (4, 8))


@every_adapter
@pytest.mark.parametrize("dim", [4, 16])
def test_dim_is_a_parameter_of_the_same_spectrum(make: Make, sequences: torch.Tensor, adapter: str, dim: int) -> None:
    model = make(adapter, dim=dim).eval()
    assert model.next_item_states(sequences[:, 1:], model.adapter.table()).shape == (len(sequences), dim)


@every_adapter
@every_backbone
def test_padding_contributes_exactly_nothing(make: Make, sequences: torch.Tensor, adapter: str, backbone: str) -> None:
    """The state of a padded history has a gradient in the rows of its items, and exactly zero in all others."""
    model = make(adapter, backbone)
    a_few_steps(model, sequences)
    model.eval()
    table = model.adapter.table().detach().requires_grad_()
    history = sequences[2:3, 1:]
    padding = model.backbone.padding
    items = {int(i) for i in history.flatten() if i != padding}
    assert len(items) < history.shape[1], "the history under test has padding"
    (model.next_item_states(history, table) * torch.arange(1.0, 9)).sum().backward()
    assert set(table.grad.abs().sum(1).nonzero().flatten().tolist()) == items


@every_adapter
@every_backbone
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("histories", [[[]], [[], []], [[], [1, 2]]])
def test_a_user_without_history_has_a_state(
    make: Make, monkeypatch: pytest.MonkeyPatch, adapter: str, backbone: str, packed: bool, histories: list[list[int]]
) -> None:
    """In a batch of its own or with others: the state is zero with a causal backbone, and that of [MASK] with BERT4Rec."""
    model = make(adapter, backbone).eval()
    monkeypatch.setattr(model, "layout", lambda tokens: Layout(tokens != model.backbone.padding, model.backbone.causal, packed))
    padded = torch.full((len(histories), 5), model.backbone.padding)
    for row, items in zip(padded, histories, strict=True):
        row[5 - len(items) :] = torch.tensor(items)
    states = model.next_item_states(padded, model.adapter.table())
    lengths = [0.0 if not items and model.backbone.causal else 1.0 for items in histories]
    torch.testing.assert_close(states.norm(dim=1), torch.tensor(lengths))


@every_adapter
@every_backbone
def test_adapter_hook_and_backbone_get_zeros_at_padding(
    make: Make, sequences: torch.Tensor, monkeypatch: pytest.MonkeyPatch, adapter: str, backbone: str
) -> None:
    """In a dense layout, padding has rows."""
    model = make(adapter, backbone)
    seen = []
    mix, forward = model.adapter.mix, model.backbone.forward
    monkeypatch.setattr(model.adapter, "mix", lambda x, layout: (seen.append(x), mix(x, layout))[1])
    monkeypatch.setattr(model.backbone, "forward", lambda x, *rest: (seen.append(x), forward(x, *rest))[1])
    tokens = model.backbone.inference_tokens(sequences[:, 1:])
    present = tokens != model.backbone.padding
    dense = Layout(present, model.backbone.causal, packed=False)
    model.states(tokens, model.adapter.table(), dense, dense)
    assert not present.all()
    assert len(seen) == 2
    for x in seen:
        assert not x[~present.flatten()].any()
        assert x[present.flatten()].any()
    seen.clear()
    model.encode(tokens, model.adapter.table())
    assert [len(x) for x in seen] == [present.sum()] * 2, "on a CPU it has none"


@every_adapter
@every_backbone
def test_no_position_sees_its_own_target(make: Make, sequences: torch.Tensor, adapter: str, backbone: str) -> None:
    model = make(adapter, backbone)
    a_few_steps(model, sequences)
    model.eval()

    def states(of: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, targets = model.backbone.training_examples(of, torch.Generator().manual_seed(3))
        return model.encode(tokens, model.adapter.table()), targets

    before, targets = states(sequences)
    examined = 0
    for row, position in (targets != model.backbone.padding).nonzero().tolist():
        target_position = position + 1 if model.backbone.causal else position
        assert sequences[row, target_position] == targets[row, position]
        other = sequences.clone()
        other[row, target_position] = (other[row, target_position] + 1) % model.backbone.padding
        torch.testing.assert_close(states(other)[0][row, position], before[row, position], rtol=0, atol=0)
        examined += 1
    assert examined >= len(sequences)


@every_adapter
@every_backbone
def test_the_future_is_seen_by_bidirectional_backbones_only(
    make: Make, sequences: torch.Tensor, adapter: str, backbone: str
) -> None:
    model = make(adapter, backbone)
    a_few_steps(model, sequences)
    model.eval()
    table = model.adapter.table()
    tokens = model.backbone.inference_tokens(sequences[:1, 1:])
    before = model.encode(tokens, table)[0]
    for cut in range(1, 5):
        other = tokens.clone()
        other[0, cut:5] = (other[0, cut:5] + 7) % 60
        after = model.encode(other, table)[0]
        if model.backbone.causal:
            torch.testing.assert_close(after[:cut], before[:cut], rtol=0, atol=1e-6)
        else:
            assert not torch.allclose(after[:cut], before[:cut], atol=1e-6)
        assert not torch.allclose(after[-1], before[-1], atol=1e-6), "the last state depends on the history"


@every_adapter
@every_backbone
def test_gradients_reach_what_is_trainable_and_nothing_else(
    make: Make, sequences: torch.Tensor, generator: torch.Generator, adapter: str, backbone: str
) -> None:
    model = make(adapter, backbone)
    frozen = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    loss, _ = model.loss(sequences, generator)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.grad.abs().max() > 0, f"the gradient of {name} is zero"
    a_few_steps(model, sequences)
    for name, buffer in model.named_buffers():
        assert not buffer.requires_grad
        assert torch.equal(buffer, frozen[name]), f"{name} is frozen"


@every_adapter
def test_every_parameter_is_optimised_once(make: Make, adapter: str) -> None:
    groups = (model := make(adapter)).parameter_groups(0.1)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())


@every_adapter
@every_backbone
def test_table_is_built_once_a_step_and_once_an_evaluation(
    make: Make, sequences: torch.Tensor, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, adapter: str, backbone: str
) -> None:
    model = make(adapter, backbone)
    calls = []
    for name in ("table", "semantic_table", "project"):
        if hasattr(model.adapter, name):
            original = getattr(model.adapter, name)
            monkeypatch.setattr(model.adapter, name, lambda f=original, n=name: (calls.append(n), f())[1])
    model.loss(sequences, generator)
    assert calls.count("table") == 1
    assert max(calls.count("project"), calls.count("semantic_table")) <= 1, "the auxiliary loss reuses what table() computed"
    calls.clear()
    evaluate_ranks(model, sequences[:, 1:], sequences[:, -1])
    assert calls.count("table") == 1
    assert max(calls.count("project"), calls.count("semantic_table")) <= 1


@every_adapter
@every_backbone
def test_evaluation_is_deterministic(make: Make, sequences: torch.Tensor, adapter: str, backbone: str) -> None:
    model = make(adapter, backbone)
    first = evaluate_ranks(model, sequences[:, 1:], sequences[:, -1])
    assert model.training is False
    np.testing.assert_array_equal(first, evaluate_ranks(model, sequences[:, 1:], sequences[:, -1]))
    table = model.adapter.table()
    states = model.next_item_states(sequences[:, 1:], table)
    assert torch.equal(table, model.adapter.table())
    assert torch.equal(states, model.next_item_states(sequences[:, 1:], table))


@every_adapter
@every_backbone
def test_a_batch_of_one_equals_the_row_in_a_batch(make: Make, sequences: torch.Tensor, adapter: str, backbone: str) -> None:
    model = make(adapter, backbone)
    a_few_steps(model, sequences)
    model.eval()
    table = model.adapter.table()
    together = model.next_item_states(sequences[:, 1:], table)
    alone = torch.cat([model.next_item_states(row[None, 1:], table) for row in sequences])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


@every_adapter
@every_backbone
def test_the_next_item_is_predicted_by_the_last_of_all_states(
    make: Make, sequences: torch.Tensor, adapter: str, backbone: str
) -> None:
    """A last block that computes only the query rows gives the same as one that computes all rows."""
    model = make(adapter, backbone)
    a_few_steps(model, sequences)
    model.eval()
    table = model.adapter.table()
    states = model.encode(model.backbone.inference_tokens(sequences[:, 1:]), table)
    torch.testing.assert_close(model.next_item_states(sequences[:, 1:], table), normalised(states[:, -1]), rtol=0, atol=1e-5)


@every_adapter
@every_backbone
def test_saved_weights_give_the_same_scores(
    make: Make, sequences: torch.Tensor, tmp_path: Path, adapter: str, backbone: str
) -> None:
    model, other = make(adapter, backbone, seed=0), make(adapter, backbone, seed=1)
    a_few_steps(model, sequences)
    model.eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    other.eval()
    table = model.adapter.table()
    assert torch.equal(table, other.adapter.table())
    expected = model.next_item_states(sequences[:, 1:], table) @ table.T
    assert torch.equal(other.next_item_states(sequences[:, 1:], table) @ table.T, expected)


@every_adapter
def test_frozen_embeddings_are_not_saved(make: Make, adapter: str) -> None:
    model = make(adapter)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@every_adapter
@every_backbone
def test_the_shortest_sequence_gives_a_finite_loss(make: Make, generator: torch.Generator, adapter: str, backbone: str) -> None:
    model = make(adapter, backbone)
    loss, count = model.loss(torch.tensor([[60, 60, 60, 60, 3, 4]]), generator)
    loss.backward()
    assert count >= 1
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_adapter
@every_backbone
@pytest.mark.parametrize("device", DEVICES)
def test_bf16_autocast_agrees_with_float32(make: Make, sequences: torch.Tensor, adapter: str, backbone: str, device: str) -> None:
    model = make(adapter, backbone).to(device)
    sequences = sequences.to(device)
    a_few_steps(model, sequences)
    model.eval()
    with torch.no_grad():
        exact, _ = model.loss(sequences, torch.Generator(device).manual_seed(0))
    assert exact.dtype == torch.float32
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        rough, _ = model.loss(sequences, torch.Generator(device).manual_seed(0))
    assert float(rough) == pytest.approx(float(exact), rel=0.05)


@every_adapter
def test_every_option_is_described(adapter: str) -> None:

    loaded = ADAPTERS.load(adapter)
    assert inspect.getdoc(loaded)
    for name, field in loaded.Config.model_fields.items():
        assert field.description, f"{adapter}.{name} has no description"


@pytest.mark.parametrize("section", ["adapters", "backbones"])
def test_params_yaml_documents_every_default(section: str) -> None:
    import yaml

    params = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))[section]
    registry = {"adapters": ADAPTERS, "backbones": BACKBONES}[section]
    assert set(params) == set(registry)
    for name in registry:
        assert params[name] == registry.load(name).Config().model_dump()


@pytest.mark.parametrize(
    ("adapter", "options", "idle"),
    [
        *((name, {"fusion": "none"}, {"id_std": 0.7}) for name in ("morec", "unisrec", "whitenrec", "spectran")),
        ("whitenrec", {"head": "linear"}, {"dropout": 0.5}),
        ("llm_esr", {"cross_attention": False}, {"dropout": 0.5}),
    ],
)
def test_an_option_that_tuning_ignores_has_no_effect(
    make: Make, sequences: torch.Tensor, adapter: str, options: dict[str, Any], idle: dict[str, Any]
) -> None:
    """As `pipeline.grid.sampler.NO_EFFECT` says: the same loss in training, to the last bit. With the opposite it has one."""

    def loss(**given: Any) -> float:
        model = make(adapter, backbone_options={"dropout": 0.0}, **given).train()
        torch.manual_seed(1)
        return model.loss(sequences, torch.Generator().manual_seed(1))[0].item()

    assert loss(**options) == loss(**options, **idle)
    opposite = {"none": "add", "linear": "mlp", False: True}
    used = {name: opposite[value] for name, value in options.items()}
    assert loss(**used) != loss(**used, **idle)
