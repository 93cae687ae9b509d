"""Embeddings by any number of processes, killed anywhere and continued: whole batches in shards, whole shards in scratch.

Processes exchange no tensors. Process 0 says which shards are missing, each embeds its share of those, and process 0 puts all of
them together. A shard holds the same batches whoever makes it.
"""

import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from pipeline.artifacts import check_seal, fingerprint, remove_directory, scratch, sealed_file
from pipeline.artifacts import sha256 as file_sha256
from pipeline.device import environment
from pipeline.embedding.encoder import TextEncoder, Tokens, plan
from pipeline.embedding.processes import Processes
from pipeline.params import Encoder

SHARD_BATCHES = 8
ROOT = Path(__file__).parents[2]


class Shards:
    """The embeddings of texts by an encoder, in `directory`: shard i is rows of the texts `self.texts(i)`."""

    def __init__(self, texts: list[str], options: Encoder, processes: Processes) -> None:
        if options.device_map and processes.count > 1:
            raise UserError(
                f"device_map: {options.device_map} spreads one model over all GPUs: start one process, found {processes.count}; "
                "or set the encoder's device_map to null in params.yaml"
            )
        self.processes = processes
        self.encoder = TextEncoder(options)
        self.tokens: Tokens = self.encoder.tokenise(texts)
        batches = plan(self.tokens.lengths, options.batch_tokens)
        self.shards = [batches[i : i + SHARD_BATCHES] for i in range(0, len(batches), SHARD_BATCHES)]
        tokens = [sha256(part.tobytes()).hexdigest() for part in (self.tokens.ids, self.tokens.pooled, self.tokens.starts)]
        code = [file_sha256(ROOT / "pipeline/embedding" / name) for name in ("encoder.py", "pretrained.py")]
        self.fingerprint = fingerprint(tokens, options.model_dump(), self.encoder.identity, SHARD_BATCHES, code)
        self.directory = scratch() / "embeddings" / self.fingerprint

    def texts(self, shard: int) -> np.ndarray:
        """Indices of a shard's texts, in the order of its rows."""
        return np.concatenate(self.shards[shard])

    def embed(self) -> dict[str, Any]:
        """Make the missing shards, each process its share. Returns what this run did, for `run.json`."""
        made = tokens = rounds = 0
        seconds = 0.0
        while missing := self._agree():
            rounds += 1
            if rounds > 3:  # Someone else's run that ends meanwhile removes what it shared with this one: once, not thrice.
                raise UserError(f"shards vanish from {self.directory}; every process must see this folder: set SPECTRAN_SCRATCH")
            share = missing[self.processes.rank :: self.processes.count]
            _ = self.encoder.model if share else None  # loading is not embedding
            start = time.perf_counter()
            self._make(share)
            self.processes.gather(None)  # until every share is there
            seconds += time.perf_counter() - start
            made += len(missing)
            tokens += sum(int(self.tokens.lengths[self.texts(shard)].sum()) for shard in missing)
        return {
            "tokens": len(self.tokens.ids),
            "shards": len(self.shards),
            "embedded_now": {"shards": made, "tokens": tokens, "seconds": seconds},
            "processes": self.processes.count,
            **environment(self.processes.device),
            **_versions(),
        }

    def save(self, path: Path) -> tuple[int, int]:
        """Put all shards together as an .npy file of (N, l) float32, never whole in memory. Returns N and l.

        Raises OSError where the disk has no room for the file, UserError where a shard is missing or damaged.
        """
        shape = (len(self.tokens.lengths), self._rows(0).shape[1])
        embeddings = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # Without room for it, writing to a memory map kills the process (SIGBUS); this raises.
            with path.open("r+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(path)) from None
        for shard in range(len(self.shards)):
            embeddings[self.texts(shard)] = self._rows(shard)
        embeddings.flush()
        return shape

    def remove(self) -> None:
        remove_directory(self.directory)

    def _file(self, shard: int) -> Path:
        return self.directory / f"{shard:06d}.npy"

    def _rows(self, shard: int) -> np.ndarray:
        """A shard's rows, (n, l) float32; raises UserError where its file is missing, cut or changed."""
        path = self._file(shard)
        check_seal(path, "the embed stage")
        return np.load(path, allow_pickle=False)

    def _whole(self, shard: int) -> bool:
        """Whether a shard is there, undamaged and of as many rows as it has texts."""
        try:
            return len(self._rows(shard)) == len(self.texts(shard))
        except UserError:
            return False

    def _agree(self) -> list[int]:
        """The missing shards, as process 0 sees them; raise UserError where another process has other texts, model or scratch."""
        missing = None
        if self.processes.first:
            self.directory.mkdir(parents=True, exist_ok=True)
            missing = [shard for shard in range(len(self.shards)) if not self._whole(shard)]
        agreed, missing = self.processes.gather((self.fingerprint, missing))[0]
        if agreed != self.fingerprint:
            raise UserError(
                f"process {self.processes.rank} has another text, model or encoder section than process 0; "
                "bring the same checkout, items.parquet and model to every node"
            )
        if not self.directory.is_dir():
            raise UserError(
                f"{self.directory} of process 0 is not there for process {self.processes.rank}; "
                "set SPECTRAN_SCRATCH to a folder that every node sees"
            )
        return missing

    def _make(self, shards: list[int]) -> None:
        """Embed and write shards, with items/s, tokens/s and time left of this process on process 0."""
        if not shards:
            return
        lengths = self.tokens.lengths
        total = sum(int(lengths[self.texts(shard)].sum()) for shard in shards)
        name = f"embedding on {self.encoder.device.type}"
        if self.processes.count > 1:
            name += f", process 1 of {self.processes.count}"
        items = 0
        with tqdm(
            total=total, desc=name, unit=" tokens", unit_scale=True, delay=1, disable=None if self.processes.first else True
        ) as bar:

            def count(batch: np.ndarray) -> None:
                nonlocal items
                items += len(batch)
                elapsed = bar.format_dict["elapsed"]
                bar.set_postfix_str(f"{items / max(elapsed, 1e-9):,.0f} items/s", refresh=False)
                bar.update(int(lengths[batch].sum()))

            for shard in shards:
                rows = self.encoder.rows(self.tokens, self.shards[shard], count)
                with sealed_file(self._file(shard)) as partial, partial.open("wb") as file:
                    np.save(file, rows)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("accelerate", "tokenizers", "transformers")}
