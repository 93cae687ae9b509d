"""The sampler of tuning: the setting that the next trial should try."""

from itertools import product
from typing import Any

from pipeline.artifacts import fingerprint

RANDOM_TRIALS = 8  # the first trials, including the defaults, which the sampler chooses without regard to earlier ones
ATTEMPTS = 100  # suggestions that repeat an earlier trial before the first untried setting is taken instead

Choice = dict[str, int]  # "section.option" -> position in the option's list of values


def next_choice(space: dict[str, list[Any]], trials: list[dict[str, Any]], seed: int) -> Choice:
    """Return a choice that no trial has tried; the first one is the defaults, which are first in each list of values.

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
    tried = [trial["choice"] for trial in trials]
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
        if choice not in tried:
            return choice
    choices = (dict(zip(space, each, strict=True)) for each in product(*(range(len(values)) for values in space.values())))
    return next(choice for choice in choices if choice not in tried)
