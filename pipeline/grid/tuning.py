"""Tuning with the same budget of trials and epochs for every method, judged on validation. The choice is a file in git.

Importing this module does not import torch.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from common.errors import UserError
from pipeline.artifacts import atomic_file, fingerprint, read_json, scratch, write_json
from pipeline.params import Params, read_yaml
from pipeline.runs import Run

SPACE = Path("grid/space.yaml")
TUNED = Path("grid/tuned")
MONITOR = "NDCG@20"
DRAWN = 4  # trials, the defaults among them, before the sampler and the pruner look at earlier ones
WARM_UP = 10  # epochs of a trial before it may be pruned

Setting = dict[str, Any]  # "section.option" -> value; sections as in Run.settings


@dataclass(frozen=True)
class Tuning:
    """The tuning of one adapter on one dataset and backbone under one loss, within the budget of `grid.search`."""

    params: Params
    dataset: str
    backbone: str
    adapter: str
    loss: str

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.backbone}-{self.adapter}-{self.loss}"

    @property
    def file(self) -> Path:
        """The file of the choice."""
        return TUNED / f"{self.name}.yaml"

    def run(self, setting: Setting, **choice: Any) -> Run:
        """A run with these settings; a trial of the tuning unless `choice` or `setting` says otherwise."""
        names = {"dataset": self.dataset, "backbone": self.backbone, "adapter": self.adapter, "dim": self.params.grid.dim}
        names |= {"seed": self.params.grid.search.seed}
        return Run.of(self.params, **names | choice, changes=_sections({"train.loss": self.loss} | setting))

    @cached_property
    def space(self) -> dict[str, list[Any]]:
        """Option -> values to choose from; the first is that of params.yaml. Raises UserError for a space that is not usable."""
        listed = read_yaml(SPACE)
        defaults = self.run({}).settings
        found = {}
        for section, options in (
            ("train", listed.get("train")),
            ("backbone", (listed.get("backbones") or {}).get(self.backbone)),
            ("adapter", (listed.get("adapters") or {}).get(self.adapter)),
        ):
            for option, values in (options or {}).items():
                if option not in defaults[section]:
                    raise UserError(f"{SPACE}: {section} {option} is no option in params.yaml of {self.name}")
                if not isinstance(values, list):
                    raise UserError(f"{SPACE}: {section} {option} wants a list of values, found {values!r}")
                default = defaults[section][option]
                found[f"{section}.{option}"] = [default, *(value for value in values if value != default)]
        return found

    @property
    def asked(self) -> dict[str, Any]:
        """What a choice is good for."""
        search = self.params.grid.search
        return {
            "encoder": self.params.encoder,
            "dim": self.params.grid.dim,
            "seed": search.seed,
            "trials": min(search.trials, prod(map(len, self.space.values()))),
            "epochs": search.epochs,
            "space": self.space,
            "settings": self.run({}).settings,
        }

    @property
    def settled(self) -> bool:
        """Whether the choice is there, for what is asked today."""
        return self.file.is_file() and read_yaml(self.file).get("asked") == self.asked

    @property
    def chosen(self) -> Setting:
        """What the tuning chose. Raises UserError where it is not there, or was made for something else."""
        if not self.file.is_file():
            raise UserError(f"{self.file} is missing; `{self.command}` makes it")
        found = read_yaml(self.file)
        for name, value in self.asked.items():
            if (found.get("asked") or {}).get(name) != value:
                raise UserError(
                    f"{self.file} was made for another {name} than params.yaml and {SPACE} say; `{self.command}` tunes again"
                )
        return dict(found["chosen"])

    @property
    def command(self) -> str:
        return f"python -m stages.tune {self.dataset} {self.backbone} {self.adapter} {self.loss}"

    @property
    def scratch(self) -> Path:
        """A file per trial. Another budget of trials goes on with what is there."""
        trial = self.run({"train.epochs": self.params.grid.search.epochs})
        return scratch() / "studies" / fingerprint(trial.fingerprint, self.space)

    def trials(self) -> list[dict[str, Any]]:
        """The trials that are over, in order."""
        files = (self.scratch / f"trial-{number}.json" for number in range(self.asked["trials"]))
        return [read_json(file, self.command) for file in files if file.is_file()]

    @property
    def searched(self) -> bool:
        return len(self.trials()) == self.asked["trials"]


def search(study: Tuning) -> None:
    """Make the trials that are not there yet, one after another: each suggestion follows from the trials before it."""
    done = study.trials()
    for number in range(len(done), study.asked["trials"]):
        trial = _trial(study, done)
        write_json(study.scratch / f"trial-{number}.json", trial)
        done.append(trial)


def write_choice(study: Tuning) -> float:
    """Write the choice, the best of the trials that were not given up; return its validation. UserError where all failed."""
    trials = study.trials()
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if not complete:
        raise UserError(f"all {len(trials)} trials of {study.name} failed, see {study.scratch}")
    best = max(complete, key=lambda trial: trial["validation"])
    content = {
        "chosen": best["setting"],
        "validation": best["validation"],
        "asked": study.asked,
        "trials": [{name: trial[name] for name in ("state", "epochs", "validation", "setting")} for trial in trials],
    }
    head = (
        f"# The best validation {MONITOR} of {len(trials)} trials of at most {study.asked['epochs']} epochs: `{study.command}`.\n"
    )
    with atomic_file(study.file) as partial:
        partial.write_text(head + yaml.dump(content, Dumper=_Plain, sort_keys=False, width=130), encoding="utf-8")
    return float(best["validation"])


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _sections(setting: Setting) -> dict[str, dict[str, Any]]:
    """{"train.loss": …} -> {"train": {"loss": …}}."""
    made: dict[str, dict[str, Any]] = {}
    for name, value in setting.items():
        section, _, option = name.partition(".")
        made.setdefault(section, {})[option] = value
    return made


def _trial(study: Tuning, done: list[dict[str, Any]]) -> dict[str, Any]:
    """Suggest settings that were not tried yet, train them, and stop early if earlier trials were better at the same epoch.

    done: the earlier trials, as their files hold them. Returns the new one: `choice` (positions in the space), `setting`
    (values), `history` (validation NDCG@20 by epoch), `epochs`, `validation` (the best of the history), and `state`: complete,
    pruned or failed (the loss was not finite; with `error`).

    Example, with the space {"train.weight_decay": [0.0, 1e-6], "adapter.order": [3, 1, 2]}:

    - Trial 0 takes the settings of params.yaml, which come first in the space: choice {"train.weight_decay": 0,
      "adapter.order": 0}, setting {"train.weight_decay": 0.0, "adapter.order": 3}.
    - Trials 1 to 3 are drawn at random, and from trial 4 on the sampler (TPE) learns from the earlier ones.
    - Once four trials are complete, a trial is pruned at epoch 10 or later if its best validation so far is below the median of
      the complete trials' validation at that epoch.

    The study of Optuna lives in memory and is built again for each trial from `done`. Its seed follows from the tuning's seed and
    the number of the trial, so an interrupted search continues as if it had not been interrupted. If the suggestion was tried
    before, the next seed is used. A run that is in scratch already is not trained again: its history is shown to the pruner epoch
    by epoch, so the trial ends as it would have in training.
    """
    import optuna

    from pipeline.training.loop import DivergedError, train_run

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, Any] = {
        # By position: values of one option may be of different types, or null.
        name: optuna.distributions.CategoricalDistribution(range(len(values)))
        for name, values in study.space.items()
    }
    tried = [trial["choice"] for trial in done]
    for attempt in count():
        seed = int(fingerprint(study.params.grid.search.seed, len(done), attempt)[:8], 16)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=DRAWN)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=DRAWN, n_warmup_steps=WARM_UP)
        told = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        for earlier in done:
            told.add_trial(_told(earlier, distributions))
        if not done:
            told.enqueue_trial(dict.fromkeys(distributions, 0))
        suggestion = told.ask(distributions)
        if suggestion.params not in tried:
            break

    def should_prune(history: list[dict[str, Any]]) -> bool:
        row = history[-1]
        suggestion.report(row[MONITOR], row["epoch"])
        return suggestion.should_prune()

    setting = {name: study.space[name][position] for name, position in suggestion.params.items()}
    run = study.run({"train.epochs": study.params.grid.search.epochs} | setting)
    trial = {"choice": suggestion.params, "setting": setting, "history": [], "epochs": 0, "validation": None}
    try:
        if run.finished:  # by an earlier study; looked at epoch by epoch all the same
            whole = pl.read_csv(run.scratch / "history.csv").to_dicts()
            cut = next((epoch for epoch in range(1, len(whole)) if should_prune(whole[:epoch])), len(whole))
            history, complete = whole[:cut], cut == len(whole)
        else:
            history, complete = train_run(run, should_prune)
    except DivergedError as error:
        return trial | {"state": "failed", "error": str(error)}
    values = [row[MONITOR] for row in history]
    figures = {"history": values, "epochs": len(values), "validation": max(values)}
    return trial | figures | {"state": "complete" if complete else "pruned"}


def _told(trial: dict[str, Any], distributions: dict[str, Any]) -> Any:
    """Return an earlier trial in Optuna's form."""
    import optuna

    states = {
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    return optuna.trial.create_trial(
        state=states[trial["state"]],
        params=trial["choice"],
        distributions=distributions,
        intermediate_values=dict(enumerate(trial["history"], start=1)),
        value=trial["validation"] if trial["state"] == "complete" else None,
    )


def listed_tunings(params: Params) -> list[Tuning]:
    """Return every tuning that `grid.search` lists."""
    grid = params.grid
    return [
        Tuning(params, dataset, backbone, adapter, loss)
        for dataset in grid.search.datasets
        for backbone in grid.search.backbones
        for loss in grid.search.losses
        for adapter in grid.adapters
    ]
