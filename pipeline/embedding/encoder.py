"""Texts to embeddings, by any Hugging Face encoder or causal model.

What decides a row is here and in `pipeline.embedding.pretrained`, which loads the model: the tokens, which texts share a
batch and the pooling. Rows do not depend on who asks for them: `encode` embeds in memory, `pipeline.embedding.shards` in many
processes.
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


class TextEncoder(Pretrained):
    """A pretrained model that turns texts into rows."""

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
        flat = np.concatenate(ids)
        if flat.max() >= self._vocabulary:
            raise self._error(
                f"its tokenizer makes token id {flat.max()}, its embedding matrix has {self._vocabulary} rows; "
                "the tokenizer belongs to another model: restore the model's files"
            )
        return Tokens(flat, pooled, starts)

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
                    raise self._error(
                        f"one text of {tokens.lengths[batch[0]]} tokens does not fit "
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
        """Rows of one batch, (B, l), or (B, layers x l). Texts are padded on the right: positions start at the first token.

        Layers are pooled one after the other, so that one of them at most is held in float32.
        """
        lengths = tokens.lengths[batch]
        position = np.arange(lengths.max())
        present = position < lengths[:, None]  # (B, P)
        place = np.minimum(tokens.starts[batch][:, None] + position, len(tokens.ids) - 1)
        pad = self.tokenizer.pad_token_id
        # Padding is masked, so any row of the embedding matrix will do.
        ids = np.where(present, tokens.ids[place], pad if pad is not None and 0 <= pad < self._vocabulary else 0)
        mask = None if present.all() else torch.from_numpy(present).long().to(self.device)
        output = self.model(
            input_ids=torch.from_numpy(ids).long().to(self.device),
            attention_mask=mask,
            **({"output_hidden_states": self.options.layers} if self.options.layers else {}),
        )
        pooled = torch.from_numpy(tokens.pooled[place] & present)
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
        """The hidden states to be pooled, each (B, P, l): those of `layers`, or the last, after the model's final norm."""
        if self.options.layers:
            states = getattr(output, "hidden_states", None) or {}
            found = [states[layer] for layer in self.options.layers if states]
        else:
            found = [state for state in [getattr(output, "last_hidden_state", None)] if state is not None]
        if not found:
            raise self._error("it gives no hidden state for every token; choose a text encoder or a causal language model")
        return found


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
    """One vector for each text, float32: the mean, the last or the first (cls) of its pooled positions.

    hidden: (B, P, l); pooled: (B, P) -> (B, l). Padding on either side is not pooled, so `last` is the last token of the text.
    """
    if pooling == "mean":
        weights = pooled.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    position = torch.arange(hidden.shape[1], device=hidden.device)
    chosen = (position * pooled).argmax(1) if pooling == "last" else pooled.int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen].float()
