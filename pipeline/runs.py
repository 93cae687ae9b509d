"""A run: what is trained, under which settings, from which inputs. One run, one fingerprint, one place in scratch.

Importing this module does not import torch: a finished run is found before anything heavy is loaded.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.code import code_fingerprint
from common.errors import UserError
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.losses import LOSSES
from pipeline.artifacts import RUNS, SIDECAR, fingerprint, read_signed, remove_directory, scratch, verify
from pipeline.params import Params, Train

ROOT = Path(__file__).parents[1]
# The code that decides a run's weights and its validation, beside its adapter, backbone and loss: directories and files.
TRAINING_CODE = ("models/core", "pipeline/device.py", "pipeline/training")
# The code that decides its test ranks, its analysis and its row in a cell. dvc.yaml and grid/dvc.yaml depend on the same.
EVALUATION_CODE = ("pipeline/evaluation",)

CHECKPOINT = Path("data/checkpoints/selected")
EVALUATION = Path("metrics/evaluation.json")
EVALUATED = RUNS / "evaluate-selected.json"  # which run metrics/evaluation.json is of


def sequences_directory(dataset: str) -> Path:
    return Path("data/sequences") / dataset


def spectrum_directory(dataset: str, encoder: str) -> Path:
    return Path("data/spectrum") / dataset / encoder


def preprocess_command(dataset: str) -> str:
    """What makes a dataset's sequences, for messages."""
    return f"`dvc repro data/dvc.yaml:preprocess@{dataset}`"


def svd_command(dataset: str) -> str:
    """What makes a dataset's spectrum, for messages."""
    return f"`dvc repro data/dvc.yaml:svd@{dataset}`"


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
            "evaluate": {"similarity": params.evaluate.similarity},  # validation chooses the weights by it
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

    @property
    def choice(self) -> dict[str, Any]:
        """The six names and the settings."""
        names = ("dataset", "encoder", "backbone", "adapter", "dim", "seed", "settings")
        return {name: getattr(self, name) for name in names}

    def config(self) -> dict[str, Any]:
        """Everything needed to rebuild the model, as it is written beside the weights."""
        return self.choice | {"fingerprint": self.fingerprint}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the choice, its settings, the content of its inputs and the code that decides its numbers."""
        return fingerprint(
            [self.dataset, self.encoder, self.backbone, self.adapter, self.dim, self.seed, self.settings],
            read_signed(self.sequences / SIDECAR, preprocess_command(self.dataset)),
            read_signed(self.spectrum / SIDECAR, svd_command(self.dataset)),
            code_fingerprint(ROOT, self.code),
        )

    def verify_inputs(self) -> None:
        """Raise UserError where what the run reads is damaged, or the spectrum was made from other items than the sequences'."""
        sequences = verify(self.sequences, preprocess_command(self.dataset))
        spectrum = verify(self.spectrum, svd_command(self.dataset))
        embeddings = spectrum.get("embeddings")
        items = embeddings.get("items") if isinstance(embeddings, dict) else None
        if items != sequences["files"].get("items.parquet"):
            raise UserError(
                f"{self.spectrum} was made from other items than {self.sequences}; {svd_command(self.dataset)} makes it again"
            )

    @property
    def code(self) -> tuple[str, ...]:
        """Files and directories, relative to the project's root, whose code decides the run's weights."""
        loss = self.settings["train"]["loss"]
        return (*TRAINING_CODE, ADAPTERS.file(self.adapter), BACKBONES.file(self.backbone), LOSSES.file(loss))

    @property
    def scratch(self) -> Path:
        """Where the finished run lies: weights, config.json, history.csv, training.json, run.json.

        Once tested: analysis.json, spectrum.csv and ranks.parquet.
        """
        return scratch() / "runs" / self.fingerprint

    @property
    def finished(self) -> bool:
        return (self.scratch / SIDECAR).is_file()

    def remove_unfinished(self) -> None:
        """Remove what training leaves behind if it is killed between putting its result in place and tidying up."""
        if (state := scratch() / "unfinished" / self.fingerprint).is_dir():
            remove_directory(state)


def evaluation_code() -> str:
    """Fingerprint of the code that tests and analyses a run."""
    return code_fingerprint(ROOT, EVALUATION_CODE)
