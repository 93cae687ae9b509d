"""The sampler of tuning: the defaults first, nothing twice, and the same again after an interruption."""

from itertools import product
from typing import Any

from pipeline.grid.sampler import Choice, next_choice

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
