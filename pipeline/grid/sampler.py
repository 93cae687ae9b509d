"""The sampler of tuning: the setting that the next trial should try."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from pipeline.artifacts import fingerprint

RANDOM_TRIALS = 8  # the first trials, including the defaults, which the sampler chooses without regard to earlier ones
ATTEMPTS = 100  # suggestions that repeat an earlier trial before the first untried setting is taken instead

# (option, value, other): with this value of the option, the other option of the same section has no effect.
NO_EFFECT = (("fusion", "none", "id_std"), ("head", "linear", "dropout"), ("cross_attention", False, "dropout"))

Choice = dict[str, int]  # "section.option" -> position in the option's list of values


def effective(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that have an effect: settings in which these are equal train the same model.

    >>> effective({"adapter.fusion": "none", "adapter.id_std": 1.0, "train.weight_decay": 0.0})
    {'adapter.fusion': 'none', 'train.weight_decay': 0.0}
    """
    idle = set()
    for name, value in setting.items():
        section, _, option = name.rpartition(".")
        idle |= {f"{section}.{other}" for by, without, other in NO_EFFECT if (option, value) == (by, without)}
    return {name: value for name, value in setting.items() if name not in idle}


def models(space: dict[str, list[Any]]) -> Iterator[Choice]:
    """Yield a choice for each model of the space, the defaults first."""
    seen = []
    for positions in product(*(range(len(values)) for values in space.values())):
        choice = dict(zip(space, positions, strict=True))
        if (model := effective(values_of(space, choice))) not in seen:
            seen.append(model)
            yield choice


def values_of(space: dict[str, list[Any]], choice: Choice) -> dict[str, Any]:
    """Return the values that a choice names."""
    return {name: space[name][position] for name, position in choice.items()}


def next_choice(space: dict[str, list[Any]], trials: list[dict[str, Any]], seed: int) -> Choice:
    """Return a choice of a model that no trial has tried; the first is the defaults, which are first in each list of values.

    space: option -> values. trials: each has its `choice`, its `state` ("complete" or "failed") and its `validation`.

    Choices come from Optuna's TPE sampler. They depend only on the space, the seed and the earlier trials, so an interrupted
    tuning continues to the same result.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not trials:
        return dict.fromkeys(space, 0)
    # The sampler chooses positions, because the values of an option may be of different types, or null.
    distributions: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(range(len(values))) for name, values in space.items()
    }
    states = {"complete": optuna.trial.TrialState.COMPLETE, "failed": optuna.trial.TrialState.FAIL}
    tried = [effective(values_of(space, trial["choice"])) for trial in trials]
    for attempt in range(ATTEMPTS):
        sampler_seed = int(fingerprint(seed, len(trials), attempt)[:8], 16)
        sampler = optuna.samplers.TPESampler(seed=sampler_seed, n_startup_trials=RANDOM_TRIALS)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in trials:
            study.add_trial(
                optuna.trial.create_trial(
                    state=states[trial["state"]],
                    params=trial["choice"],
                    distributions=distributions,
                    value=trial["validation"],
                )
            )
        choice: Choice = study.ask(distributions).params
        if effective(values_of(space, choice)) not in tried:
            return choice
    return next(choice for choice in models(space) if effective(values_of(space, choice)) not in tried)
