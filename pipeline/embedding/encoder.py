"""Embeds texts with any Hugging Face encoder or causal model.

This module and `pipeline.embedding.pretrained`, which loads the model, contain all that decides an embedding: tokens, batches and
pooling. `encode` embeds in memory, `pipeline.embedding.shards` in several processes; both give the same rows.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from pipeline.embedding.pretrained import Pretrained
from pipeline.params import Encoder

TOKENISED = 10_000  # texts tokenised at a time


@dataclass(frozen=True)
class Tokens:
    """The tokens of N texts, concatenated.

    ids: (T,) int32. pooled: (T,) bool, whether a token takes part in pooling. starts: (N + 1,) int64, text i has the tokens from
    starts[i] to starts[i + 1] (exclusive).
    """

    ids: np.ndarray
    pooled: np.ndarray
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each text, (N,); at least 1."""
        return np.diff(self.starts)


def plan(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Divide texts into batches; return the indices of the texts in each batch, longest texts first.

    lengths: (N,) tokens of each text. A batch has at most `batch_tokens` tokens, including padding, or is a single text.

    A batch that is at least half full also ends where the next text is shorter. Most batches then need no padding and no
    attention mask, so attention can use a flash kernel. Batches depend only on lengths and budget, so they are the same in every
    process and after a restart.

    >>> [batch.tolist() for batch in plan(np.array([3, 5, 3, 2]), batch_tokens=8)]
    [[1], [0, 2], [3]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    for position in range(1, len(order) + 1):
        longest = lengths[order[start]]
        rows = position - start  # of the batch so far, which has no padding if all are as long as the first
        if (
            position == len(order)
            or (rows + 1) * longest > batch_tokens
            or (2 * rows * longest >= batch_tokens and lengths[order[position]] < longest)
        ):
            batches.append(order[start:position])
            start = position
    return batches


class TextEncoder(Pretrained):
    """A pretrained model that embeds texts."""

    def tokenise(self, texts: list[str]) -> Tokens:
        """Return the tokens of texts, each preceded by the prompt and truncated to `max_length`.

        Raises UserError if there are no texts, or a token id is outside the model's vocabulary.
        """
        if not texts:
            raise UserError("there are no texts to embed; run preprocess first")
        # A text without tokens still needs an embedding: that of the end-of-text token.
        placeholder = next((i for i in (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id) if i is not None), 0)
        ids, special, lengths = [], [], []
        for start in range(0, len(texts), TOKENISED):
            encoded = self.tokenizer(
                [self.options.prompt + text for text in texts[start : start + TOKENISED]],
                truncation=True,
                max_length=self.max_length,
                return_special_tokens_mask=True,
                return_attention_mask=False,
            )
            for row, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
                ids.append(np.array(row or [placeholder], dtype=np.int32))
                special.append(np.array(mask or [1], dtype=bool))
                lengths.append(len(ids[-1]))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        pooled = np.ones(starts[-1], dtype=bool)
        if not self.options.pool_special_tokens:
            pooled = ~np.concatenate(special)
            # A text that has only special tokens, such as an empty one, is pooled over these.
            empty = np.add.reduceat(pooled, starts[:-1], dtype=np.int64) == 0
            pooled |= np.repeat(empty, lengths)
        flat = np.concatenate(ids)
        if flat.max() >= self._vocabulary:
            raise self._error(
                f"its tokenizer gives token id {flat.max()}, but its embedding matrix has {self._vocabulary} rows; "
                "the tokenizer belongs to another model: restore the model's files"
            )
        return Tokens(flat, pooled, starts)

    def rows(
        self, tokens: Tokens, batches: list[np.ndarray], done: Callable[[np.ndarray], Any] = lambda batch: None
    ) -> np.ndarray:
        """Return the embeddings of the texts in `batches`, (n, l) float32, in the order of the batches.

        batches: indices of texts, from `plan`. done: called with every finished batch. If memory runs out, this batch and all
        later ones are halved, repeatedly if necessary. Raises UserError if a single text does not fit into memory.
        """
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        rows, waiting = [], list(batches)
        while waiting:
            batch = waiting[0]
            try:
                rows.append(self._forward(tokens, batch))
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if len(batch) == 1:
                    raise self._error(
                        f"one text of {tokens.lengths[batch[0]]} tokens does not fit "
                        "into memory; lower its max_length, or set its device_map to auto in params.yaml"
                    ) from None
            else:
                done(waiting.pop(0))
                continue
            # Outside the `except` clause, the tensors of the failed pass are freed.
            clear_device_cache(garbage_collection=True)
            waiting = [half for batch in waiting for half in np.array_split(batch, 2) if len(half)]
            tqdm.write(f"out of memory with {len(batch)} texts in a batch; continuing with half of them", file=sys.stderr)
        return np.concatenate(rows)

    @torch.inference_mode()
    def _forward(self, tokens: Tokens, batch: np.ndarray) -> np.ndarray:
        """Return the embeddings of one batch, (B, l), or (B, layers x l) with the option `layers`.

        Texts are padded on the right, so that positions start at the first token. Layers are pooled one at a time, so that at
        most one of them is in memory as float32. Raises UserError if an embedding is not finite.
        """
        lengths = tokens.lengths[batch]
        position = np.arange(lengths.max())
        present = position < lengths[:, None]  # (B, P)
        index = np.minimum(tokens.starts[batch][:, None] + position, len(tokens.ids) - 1)  # (B, P), into tokens.ids
        pad = self.tokenizer.pad_token_id
        # Padding is masked, so any valid id will do.
        ids = np.where(present, tokens.ids[index], pad if pad is not None and 0 <= pad < self._vocabulary else 0)
        mask = None if present.all() else torch.from_numpy(present).long().to(self.device)
        output = self.model(
            input_ids=torch.from_numpy(ids).long().to(self.device),
            attention_mask=mask,
            **({"output_hidden_states": self.options.layers} if self.options.layers else {}),
        )
        pooled = torch.from_numpy(tokens.pooled[index] & present)
        vectors = [pool(hidden, pooled.to(hidden.device), self.options.pooling) for hidden in self._hidden(output)]
        if not all(vector.isfinite().all() for vector in vectors):
            raise self._error(
                f"embeddings are not finite in {self.options.dtype}; set its dtype to bfloat16 or float32 in params.yaml"
            )
        if self.options.layers:
            vectors = [torch.nn.functional.normalize(vector, dim=-1).to(vectors[0].device) for vector in vectors]
        rows = torch.cat(vectors, dim=-1)
        if self.options.normalise:
            rows = torch.nn.functional.normalize(rows, dim=-1)
        return rows.cpu().numpy()

    def _hidden(self, output: Any) -> list[Tensor]:
        """Return the hidden states to pool, each (B, P, l): those of `layers`, or the last one, after the final norm."""
        if self.options.layers:
            states = getattr(output, "hidden_states", None) or {}
            hidden = [states[layer] for layer in self.options.layers if states]
        else:
            hidden = [state for state in [getattr(output, "last_hidden_state", None)] if state is not None]
        if not hidden:
            raise self._error("it gives no hidden states per token; choose a text encoder or a causal language model")
        return hidden


def encode(texts: list[str], options: Encoder) -> tuple[np.ndarray, dict[str, Any]]:
    """Embed texts in this process; return the embeddings, (N, l) float32, and the number of tokens and the device."""
    encoder = TextEncoder(options)
    tokens = encoder.tokenise(texts)
    batches = plan(tokens.lengths, options.batch_tokens)
    rows = encoder.rows(tokens, batches)
    embeddings = np.empty_like(rows)
    embeddings[np.concatenate(batches)] = rows
    return embeddings, {"tokens": len(tokens.ids), "device": str(encoder.device)}


def pool(hidden: Tensor, pooled: Tensor, pooling: str) -> Tensor:
    """Return one vector per text, (B, l) float32: the mean, the last or the first (`cls`) of its pooled positions.

    hidden: (B, P, l); pooled: (B, P) bool, False at padding.
    """
    if pooling == "mean":
        weights = pooled.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    position = torch.arange(hidden.shape[1], device=hidden.device)
    chosen = (position * pooled).argmax(1) if pooling == "last" else pooled.int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen].float()
