"""What a run will meet on this machine: versions, device, encoder, cache, remote, disk."""

import platform
import shutil
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.secrets import masked
from pipeline.artifacts import SIDECAR, broken_dvc_lock, main_checkout, read_json
from pipeline.params import Encoder, Params
from pipeline.remotes import default_remote, refuse_secrets, silence
from pipeline.runs import sequences_directory, spectrum_directory

if TYPE_CHECKING:
    from pipeline.embedding.encoder import TextEncoder

PACKAGES = ("dvc", "torch", "transformers", "numpy", "polars")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
GIT_LOCK = Path(".git/index.lock")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "spiece.model")


class Examination:
    """The page, a line a finding; `troubles` are the findings that the selected run does not survive."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.encoder = params.encoders[params.encoder]
        self.embeddings = Path("data/embeddings") / params.dataset / params.encoder
        self.spectrum = spectrum_directory(params.dataset, params.encoder)
        self.sequences = sequences_directory(params.dataset)
        self.missing = [path for path in (self.sequences, self.spectrum) if not (path / SIDECAR).is_file()]
        self.troubles: list[str] = []

    def page(self) -> str:
        findings = {
            "python": f"{platform.python_version()}, {sys.executable}",
            "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
            "device": self.device(),
            "dtype": f"embeds in {self.encoder.dtype} (encoders.{self.params.encoder}.dtype), "
            f"trains in {self.params.train.precision} (train.precision)",
            "data": self.data(),
            "model": str(self.model) if isinstance(self.model, UserError) else f"loads offline from {self.folder}",
            "embedding": self.embedding(),
            "cache": self.cache(),
            "locks": self.locks(),
            "remote": self.remote(),
            "secrets": self.secrets(),
            "disk": self.disk(),
        }
        return "\n".join(f"{name:10}{text}" for name, text in findings.items())

    def device(self) -> str:
        import torch

        if torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory
            return f"cuda: {torch.cuda.get_device_name(0)}, {memory / 2**30:.0f} GiB; torch finds it, so it is used"
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU"
        return f"cpu, {torch.get_num_threads()} threads: {reason}"

    def data(self) -> str:
        if not self.missing:
            return f"{self.sequences} and {self.spectrum} are here: nothing is embedded"
        absent = " and ".join(map(str, self.missing))
        return f"{absent} not here: `dvc exp run evaluate --pull --allow-missing` fetches or makes them"

    @cached_property
    def folder(self) -> Path:
        """The folder or GGUF file that the encoder loads from without network; raises UserError where it is not here."""
        return offline_folder(self.encoder)

    @cached_property
    def model(self) -> "TextEncoder | UserError":
        """The encoder, loaded without network, its weights checked but not read; or why it cannot be loaded."""
        from pipeline.embedding.encoder import TextEncoder

        try:
            encoder = TextEncoder(self.encoder.model_copy(update={"model": str(self.folder)}))
            encoder.check_weights()
        except UserError as error:
            return error
        return encoder

    def embedding(self) -> str:
        """Whether the embeddings were made from the model that is here: DVC does not watch a model's files."""
        from pipeline.embedding.pretrained import model_location

        made_from = read_json(self.embeddings / SIDECAR, "the embed stage").get("model") if self.embeddings.is_dir() else None
        if made_from is None:
            return f"{self.embeddings} is not here"
        if isinstance(self.model, UserError):
            return f"{self.embeddings} was made from model {made_from[:12]}; no model is here to compare it with"
        of_hub = not Path(model_location(self.encoder.model)).exists() and self.folder.is_dir()
        today = self.folder.name if of_hub else self.model.identity  # a snapshot of the hub is named by its commit
        if made_from == today:
            return f"{self.embeddings} was made from this model"
        says = (
            f"{self.embeddings} was made from model {made_from[:12]}, here is {today[:12]}; "
            f"`dvc repro -f -s data/dvc.yaml:embed@{self.params.dataset}` embeds anew"
        )
        self.troubles.append(says)
        return says

    @cached_property
    def links(self) -> tuple[str, list[str], str]:
        """DVC's cache, the ways of linking that the configuration asks for, and the first of them that works from here."""
        from dvc.repo import Repo
        from dvc_objects.fs import localfs
        from dvc_objects.fs.generic import test_links

        with Repo() as repo:
            folder, wanted = repo.cache.local.path, repo.cache.local.cache_types
        works = test_links(wanted, localfs, folder, localfs, str(Path("data/runs").absolute()))
        return folder, wanted, works[0] if works else "copy"

    def cache(self) -> str:
        folder, wanted, link = self.links
        if link == "copy":
            return f"copies: no link that .dvc/config asks for works between {folder} and here; everything lies on disk twice"
        failing = wanted[: wanted.index(link)]
        return f"links by {link}: one copy of everything" + (f" ({', '.join(failing)} not here)" if failing else "")

    def locks(self) -> str:
        """Whether a killed program left a lock that stops DVC."""
        troubles = [broken] if (broken := broken_dvc_lock()) else []
        if GIT_LOCK.exists():  # DVC adds its files to git
            troubles.append(f"{GIT_LOCK} is there: git is at work, or was killed; if no git is at work, `rm {GIT_LOCK}`")
        self.troubles += troubles
        return "; ".join(troubles) or "no lock was left behind"

    def remote(self) -> str:
        remote = default_remote()
        if remote is None:
            silent = "none; `dvc remote add --default team <url>` makes one (docs/teamwork.md)"
        else:
            reason = silence(remote[0])
            silent = f"{remote[0]} ({remote[1]}) does not answer: {reason}" if reason else ""
        if silent and self.missing and isinstance(self.model, UserError) and self.encoder.model.startswith(("package:", "/")):
            self.troubles.append("the run's data is not here, no remote brings it, and the encoder to make it cannot be loaded")
        says = silent if silent or remote is None else f"{remote[0]} ({remote[1]}) answers"
        return masked(says)

    def secrets(self) -> str:
        try:
            refuse_secrets()
        except UserError as error:
            self.troubles.append(str(error))
            return str(error)
        return "none in .dvc/config"

    def disk(self) -> str:
        free = shutil.disk_usage(main_checkout()).free
        says = f"{free / 2**30:.1f} GiB free; the run needs "
        items, width = self.items(), self.width()
        if items is None:
            return f"{says}what its number of items decides: see after `dvc repro data/dvc.yaml:preprocess@{self.params.dataset}`"
        if width is None:
            return f"{says}what the width of its embeddings decides: known once the model is here"
        copies = 2 if self.links[2] == "copy" else 1
        need = artifact_bytes(items, width, self.params.dim) * copies
        if need > free:
            self.troubles.append(f"the run needs about {need / 2**30:.1f} GiB of disk, {free / 2**30:.1f} are free")
        made = f"embeddings, spectrum and weights of {items:,} items x {width}"
        return f"{says}about {need / 2**20:,.0f} MiB ({made}{', twice' if copies == 2 else ''})"

    def items(self) -> int | None:
        statistics = self.sequences / "statistics.json"
        if statistics.is_file():
            return int(read_json(statistics, "the preprocess stage")["items"])
        return self.params.sources[self.params.dataset].known_items

    def width(self) -> int | None:
        """Columns of the embeddings."""
        return None if isinstance(self.model, UserError) else self.model.width


def artifact_bytes(items: int, width: int, dim: int) -> int:
    """Bytes of embeddings (N x l), two spectra (N x r, l x r, r, l; r <= min(N, l)) and two sets of weights (2 N x d), float32.

    Two sets of weights: a run keeps its own in scratch beside the checkpoint; Adam's moments add two while it trains.
    """
    rank = min(items, width)
    spectra = 2 * (items * rank + width * rank + rank + width)
    return 4 * (items * width + spectra + 4 * 2 * items * dim)


def offline_folder(encoder: Encoder) -> Path:
    """The folder or GGUF file that an encoder loads from without network; raise UserError where part of it is not here."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from pipeline.embedding.pretrained import GGUF, hub_file, model_location

    location = model_location(encoder.model)
    folder = Path(location)
    try:
        if folder.suffix == GGUF:
            if folder.is_file():
                return folder
            repository, file = hub_file(location)
            found = try_to_load_from_cache(repository, file, revision=encoder.revision)
            if not isinstance(found, str):
                raise UserError(f"{encoder.model} is not on this machine; `hf download {repository} {file}` brings it")
            return Path(found)
        if not folder.is_dir():
            folder = Path(snapshot_download(location, revision=encoder.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise UserError(f"{encoder.model} is not on this machine; `hf download {encoder.model}` brings it") from None
    for kind, names in (
        ("configuration", _present(folder, ("config.json",))),
        ("tokenizer", _present(folder, TOKENIZERS)),
        ("weights", [*_present(folder, WEIGHTS), *_whole(folder)]),
    ):
        if not names:
            raise UserError(f"{encoder.model} is not whole in {folder}: its {kind} is missing")
    return folder


def _present(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (folder / name).is_file()]


def _whole(folder: Path) -> Iterator[str]:
    """Indices of sharded weights all of whose shards are there."""
    for name in _present(folder, INDICES):
        shards = set(read_json(folder / name, "the model's publisher")["weight_map"].values())
        if all((folder / shard).is_file() for shard in shards):
            yield name
