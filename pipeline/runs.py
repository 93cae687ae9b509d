"""A run: what is trained, under which settings, from which inputs. One run, one fingerprint, one place in scratch.

Importing this module does not import torch: a finished run is found before anything heavy is loaded.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from pipeline.artifacts import SIDECAR, fingerprint, read_json, scratch, sha256
from pipeline.params import Params, Train

ROOT = Path(__file__).parents[1]
# The code that decides a run's numbers. dvc.yaml and grid/dvc.yaml depend on the same files (a test compares them).
CODE = (
    "models/recommender.py",
    "models/losses.py",
    "models/attention.py",
    "models/layout.py",
    "models/sampled.py",
    "models/dropout.py",
    "models/adapters/adapter.py",
    "models/adapters/fusion.py",
    "models/backbones/backbone.py",
    "pipeline/training.py",
    "pipeline/steps.py",
    "pipeline/sequences.py",
    "pipeline/ranking.py",
    "pipeline/metrics.py",
)
EVALUATION = ("pipeline/evaluation.py", "models/spectral.py")  # decide the test ranks and the analysis, not the weights


CHECKPOINT = Path("data/checkpoints/selected")


def sequences_directory(dataset: str) -> Path:
    return Path("data/sequences") / dataset


def spectrum_directory(dataset: str, encoder: str) -> Path:
    return Path("data/spectrum") / dataset / encoder


def module_file(entry: str) -> str:
    """`"models.adapters.base:Base"` -> `"models/adapters/base.py"`."""
    return entry.partition(":")[0].replace(".", "/") + ".py"


@dataclass(frozen=True)
class Run:
    """One (dataset, encoder, backbone, adapter, dim, seed) and the settings that it reads."""

    dataset: str
    encoder: str
    backbone: str
    adapter: str
    dim: int
    seed: int
    settings: dict[str, Any]

    @classmethod
    def of(cls, params: Params, **choice: Any) -> "Run":
        """The selected run of `params`, any of its six names replaced, and settings by `changes`: {section: {option: value}}."""
        names = ("dataset", "encoder", "backbone", "adapter", "dim", "seed")
        chosen = {name: choice.get(name, getattr(params, name)) for name in names}
        settings = {
            "train": params.train.model_dump(),
            "backbone": params.backbones[chosen["backbone"]],
            "adapter": params.adapters[chosen["adapter"]],
        }
        for section, changed in choice.get("changes", {}).items():
            settings[section] = settings[section] | changed
        Train.parse(settings["train"], "params.yaml: train, with what was chosen")
        return cls(**chosen, settings=settings)

    @property
    def sequences(self) -> Path:
        return sequences_directory(self.dataset)

    @property
    def spectrum(self) -> Path:
        return spectrum_directory(self.dataset, self.encoder)

    @property
    def name(self) -> str:
        variant = self.settings["adapter"].get("variant", "full")
        which = "" if variant == "full" else f" {variant}"
        return f"{self.dataset}-{self.backbone}-{self.adapter}{which} dim {self.dim} seed {self.seed}"

    def config(self) -> dict[str, Any]:
        """Everything needed to rebuild the model, as it is written beside the weights."""
        names = ("dataset", "encoder", "backbone", "adapter", "dim", "seed", "settings")
        return {name: getattr(self, name) for name in names} | {"fingerprint": self.fingerprint}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the choice, its settings, the content of its inputs and the code that decides its numbers."""
        code = [*CODE, module_file(ADAPTERS[self.adapter]), module_file(BACKBONES[self.backbone])]
        return fingerprint(
            [self.dataset, self.encoder, self.backbone, self.adapter, self.dim, self.seed, self.settings],
            read_json(self.sequences / SIDECAR, "the preprocess stage"),
            read_json(self.spectrum / SIDECAR, "the svd stage"),
            [sha256(ROOT / file) for file in code],
        )

    @property
    def scratch(self) -> Path:
        """Where the finished run lies: weights, config.json, history.csv, training.json, run.json.

        Once tested: analysis.json, spectrum.csv and ranks.parquet.
        """
        return scratch() / "runs" / self.fingerprint

    @property
    def finished(self) -> bool:
        return (self.scratch / "config.json").is_file()


def evaluation_code() -> str:
    """Fingerprint of the code that tests and analyses a run."""
    return fingerprint([sha256(ROOT / file) for file in EVALUATION])
