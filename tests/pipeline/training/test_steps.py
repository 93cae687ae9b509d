"""Steps: each uses the previous update, and a graph is kept only if replaying it is equivalent."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from models.core.adapter import Spectrum
from models.losses import LOSSES
from pipeline.training import steps as module
from pipeline.training.model import build_recommender
from pipeline.training.steps import Step, Steps, cuda_graph

N_ITEMS, BATCH = 40, 8
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


def make_steps(
    capture: Callable[[Steps, Tensor], Step] | None = None,
    device: str = "cpu",
    rate: float = 0.01,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    backbone: str = "sasrec",
    adapter: str = "spectran",
    loss: Literal["info_nce", "cross_entropy"] = "info_nce",
) -> Steps:
    torch.manual_seed(0)
    E = torch.nn.functional.normalize(torch.randn(N_ITEMS, 12), dim=1)
    U, sigma, Vh = torch.linalg.svd(E, full_matrices=False)
    spectrum = Spectrum(U, sigma, Vh.T.contiguous(), torch.zeros(12), lambda: spectrum)
    model = build_recommender(
        spectrum,
        adapter=adapter,
        adapter_options={},
        backbone=backbone,
        backbone_options={},
        dim=8,
        max_history=5,
        objective=LOSSES.load(loss)(0.07, 7),
    ).to(device)
    draws = torch.Generator(device).manual_seed(1)
    optimiser = torch.optim.Adam(model.parameter_groups(0.0), lr=rate, fused=True, capturable=device == "cuda")
    return Steps(model, [optimiser], draws, precision, BATCH, capture)


def users(device: str = "cpu") -> Tensor:
    """45 users, so that the last batch is not full. (45, 6)"""
    rows = torch.randint(N_ITEMS, (45, 6), generator=torch.Generator().manual_seed(2))
    rows[::3, :2] = N_ITEMS
    return rows.to(device)


def after(steps: Steps, epochs: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    """Return the losses of every step of some epochs, and the weights after them."""
    device = str(steps.generator.device.type)
    torch.manual_seed(5)
    losses = [steps.epoch(users(device))[0] for _ in range(epochs)]
    return losses, [p.detach().cpu() for p in steps.model.parameters()]


def test_an_epoch_is_a_step_for_every_batch_and_counts_every_target() -> None:
    losses, targets = make_steps().epoch(users())
    assert len(losses) == len(targets) == 6
    assert targets.sum() == 45 * 5 - 15 * 2
    assert losses.dtype == torch.float64


def test_a_step_in_bfloat16_sees_the_update_of_the_step_before() -> None:
    """Autocast caches copies of the weights until its context ends, so one context per epoch would train on old weights."""
    steps = make_steps(rate=0.1, precision=partial(torch.autocast, "cpu", torch.bfloat16))
    linear = {id(m.weight) for m in steps.model.backbone.modules() if isinstance(m, torch.nn.Linear)}
    for p in steps.model.parameters():
        p.requires_grad_(id(p) in linear)
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        steps.generator.manual_seed(0)
        seen.append(float(steps.step(users()[:BATCH])[0]))
    assert seen[1] < seen[0]


# ------------------------------------------------------------------------------------------------------------ graphs, imitated


def same(steps: Steps, example: Tensor) -> Step:
    """Replace a graph by an ordinary step."""
    assert len(example) == BATCH
    return steps.step


def not_captured(steps: Steps, example: Tensor) -> Step:
    torch.rand(3, generator=steps.generator)
    steps.step(example)  # what a failed attempt may leave behind
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def without_update(steps: Steps, example: Tensor) -> Step:
    def step(batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, count = steps.model.loss(batch, steps.generator)
        return loss.detach(), count

    return step


def with_old_draws(steps: Steps, example: Tensor) -> Step:
    frozen = steps.generator.get_state()

    def step(batch: Tensor) -> tuple[Tensor, Tensor]:
        steps.generator.set_state(frozen)
        return steps.step(batch)

    return step


def on_its_example(steps: Steps, example: Tensor) -> Step:
    return lambda batch: steps.step(example)


def test_a_graph_that_trains_the_same_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    plain, steps = make_steps(), make_steps(same)
    (losses, trained), (found, replayed) = after(plain), after(steps)
    assert steps.replayed is not None
    assert all(torch.equal(a, b) for a, b in zip([*losses, *trained], [*found, *replayed], strict=True))
    assert "CUDA graph" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (not_captured, "(operation not permitted when stream is capturing)"),
        (without_update, "(its losses were others)"),
        (with_old_draws, "(its losses were others)"),
        (on_its_example, "(its losses were others)"),
    ],
)
def test_a_graph_that_trains_otherwise_is_given_up_and_nothing_of_it_stays(
    capture: Callable[[Steps, Tensor], Step], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, steps = make_steps(), make_steps(capture)
    (losses, trained), (found, kept) = after(plain), after(steps)
    assert steps.replayed is None
    assert all(torch.equal(a, b) for a, b in zip([*losses, *trained], [*found, *kept], strict=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if "CUDA graph" in line]
    assert len(lines) == 1, "tried once"
    assert lines[0].endswith(reason)


def test_a_capture_that_takes_the_random_states_with_it_is_one_line_that_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("Cannot call set_state during CUDA graph capture")

    def broken(steps: Steps, example: Tensor) -> Step:
        monkeypatch.setattr(module, "set_random_states", lost)
        raise RuntimeError("operation not permitted")

    with pytest.raises(UserError, match=r"\(operation not permitted\).*SPECTRAN_NO_CUDA_GRAPH=1") as caught:
        make_steps(broken).epoch(users())
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------ on a GPU


@on_a_gpu
@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "hstu"])
@pytest.mark.parametrize("adapter", ["base", "llm_esr", "unisrec", "spectran"])
@pytest.mark.parametrize("loss", ["info_nce", "cross_entropy"])
def test_a_step_is_captured_and_trains_the_same(backbone: str, adapter: str, loss: str) -> None:
    given = {"device": "cuda", "backbone": backbone, "adapter": adapter, "loss": loss}
    steps = make_steps(cuda_graph, **given)
    (losses, trained), (found, replayed) = after(make_steps(**given)), after(steps)
    assert steps.replayed is not None
    torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(replayed, trained, rtol=1e-3, atol=1e-4)
