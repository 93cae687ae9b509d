"""Mistakes in a method's parameters are one clear line each."""

from collections.abc import Callable

import numpy as np
import pytest

from common.errors import UserError
from models.core.adapter import Spectrum
from models.core.recommender import Recommender

Make = Callable[..., Recommender]


def message(make: Make, *names: str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        make(*names, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("adapter", ["unisrec", "rlmrec", "llm_esr"])
def test_an_odd_dim_has_no_halves(make: Make, adapter: str) -> None:
    text = message(make, adapter, dim=7)
    assert text.startswith(f"adapter {adapter}: dim is 7")
    assert "even" in text


def test_cross_attention_needs_two_heads_in_a_half(make: Make) -> None:
    assert "multiple of 4" in message(make, "llm_esr", dim=6)
    make("llm_esr", dim=6, cross_attention=False)


def test_popularity_that_nobody_gave_is_asked_for_in_one_line(make: Make) -> None:
    assert "training interactions" in message(make, "llminit", popular_share=0.2)


@pytest.mark.parametrize("adapter", ["alphafuse", "spectran", "llminit"])
def test_dim_above_what_the_text_has_is_refused(make: Make, adapter: str) -> None:
    text = message(make, adapter, dim=64)
    assert text.startswith(f"adapter {adapter}: dim is 64")
    assert "24" in text


@pytest.mark.parametrize(("adapter", "allowed"), [("alphafuse", 10), ("spectran", 11)])
def test_dim_above_the_number_of_items_is_refused(
    make: Make, decompose: Callable[[np.ndarray], Spectrum], embeddings: np.ndarray, adapter: str, allowed: int
) -> None:
    few = decompose(embeddings[:11])
    assert f"rank {allowed}" in message(make, adapter, on=few, dim=16)
    make(adapter, on=few, dim=10)


@pytest.mark.parametrize(("adapter", "options"), [("llm_esr", {}), ("spectran", {"fusion": "concat"})])
def test_half_of_dim_above_the_rank_is_refused(make: Make, adapter: str, options: dict[str, object]) -> None:
    text = message(make, adapter, dim=64, **options)
    assert text.startswith(f"adapter {adapter}: dim is 64, half of which")
    assert "choose dim <= 48 or" in text
    make(adapter, dim=48, **options)


@pytest.mark.parametrize(
    ("adapter", "option", "hint"),
    [
        ("morec", {"null_share": 0.5}, "unknown parameter 'null_share'"),
        ("base", {"fusion": "add"}, "unknown parameter 'fusion'"),
        ("rlmrec", {"bata": 0.5}, "did you mean 'beta'?"),
        ("whitenrec", {"whiten_rank": 0}, "whiten_rank"),
        ("unisrec", {"fusion": "id"}, "fusion"),
        ("spectran", {"variant": "none"}, "variant"),
        ("base", {"id_std": 0.0}, "id_std"),
        ("base", {"id_std": float("nan")}, "id_std"),
    ],
)
def test_an_option_that_the_adapter_does_not_own_or_allow(make: Make, adapter: str, option: dict, hint: str) -> None:
    text = message(make, adapter, **option)
    assert text.startswith(f"params.yaml: adapters.{adapter}: ")
    assert hint in text


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_mask_ratio_outside_0_and_1(make: Make, ratio: float) -> None:
    text = message(make, "base", "bert4rec", backbone_options={"mask_ratio": ratio})
    assert text.startswith("params.yaml: backbones.bert4rec: mask_ratio")


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "hstu"])
def test_heads_that_do_not_divide_dim(make: Make, backbone: str) -> None:
    text = message(make, "base", backbone, backbone_options={"heads": 3})
    assert text.startswith(f"backbone {backbone}: heads is 3, which does not divide dim 8")
