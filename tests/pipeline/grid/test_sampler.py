"""The sampler of tuning: the defaults first, nothing twice, and the same again after an interruption."""

from itertools import product
from typing import Any

from pipeline.grid.sampler import Choice, effective, models, next_choice, values_of

SPACE = {"adapter.order": [3, 1, None], "train.learning_rate": [0.001, 0.01]}


def chosen(count: int, seed: int = 0) -> list[Choice]:
    """Return the choices of `count` trials, of which every other one fails."""
    trials: list[dict[str, Any]] = []
    for number in range(count):
        failed = number % 2 == 1
        result = {"state": "failed", "validation": None} if failed else {"state": "complete", "validation": 0.1 * number}
        trials.append({"choice": next_choice(SPACE, trials, seed), **result})
    return [trial["choice"] for trial in trials]


def test_the_defaults_come_first_and_every_setting_once() -> None:
    choices = chosen(6)
    assert choices[0] == {"adapter.order": 0, "train.learning_rate": 0}
    assert sorted(tuple(choice[name] for name in SPACE) for choice in choices) == sorted(product(range(3), range(2)))


def test_a_choice_depends_on_the_seed_and_the_earlier_trials_only() -> None:
    assert chosen(5) == chosen(5)
    assert len({str(chosen(5, seed)) for seed in range(5)}) > 1


def test_no_model_is_tried_twice_where_an_option_has_no_effect() -> None:
    """Without IDs their first values do not matter: 2 x 3 settings with IDs and 2 without are 8 models."""
    space = {"adapter.fusion": ["none", "add", "concat"], "adapter.id_std": [0.0, 0.02, 1.0], "train.weight_decay": [0.0, 1e-4]}
    assert sum(1 for _ in models(space)) == 2 * (1 + 2 * 3)
    trials: list[dict[str, Any]] = []
    for number in range(14):
        choice = next_choice(space, trials, seed=0)
        trials.append({"choice": choice, "state": "complete", "validation": 1.0 - 0.01 * number})
    tried = [str(effective(values_of(space, trial["choice"]))) for trial in trials]
    assert len(set(tried)) == 14


def test_an_option_has_no_effect_only_in_its_own_section() -> None:
    assert effective({"adapter.head": "linear", "adapter.dropout": 0.2, "backbone.dropout": 0.5}) == {
        "adapter.head": "linear",
        "backbone.dropout": 0.5,
    }
    every = {"head": "mlp", "cross_attention": True, "dropout": 0.2, "fusion": "add", "id_std": 1.0}
    every = {f"adapter.{option}": value for option, value in every.items()}
    assert effective(every) == every
