"""Embeds texts with any number of processes, in shards of whole batches that are kept in scratch.

If interrupted, the same command continues on any number of processes; finished shards are reused. Process 0 decides which shards
are missing, each process computes its share of them, and process 0 merges all shards. A shard does not depend on the process that
computes it.
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
from pipeline.embedding.encoder import TextEncoder, Tokens, plan
from pipeline.embedding.processes import Processes
from pipeline.params import Encoder

SHARD_BATCHES = 8  # batches of a shard
ROOT = Path(__file__).parents[2]


class Shards:
    """The shards of the embeddings of texts, as files in `directory`. Shard i has the rows of the texts `texts(i)`.

    Raises UserError if the model cannot be loaded, or `device_map` is set and there are several processes.
    """

    def __init__(self, texts: list[str], options: Encoder, processes: Processes) -> None:
        if options.device_map and processes.count > 1:
            raise UserError(
                f"device_map: {options.device_map} spreads one model over all GPUs, so start one process, found "
                f"{processes.count}; or set the encoder's device_map to null in params.yaml"
            )
        self.processes = processes
        self.encoder = TextEncoder(options)
        self.tokens: Tokens = self.encoder.tokenise(texts)
        batches = plan(self.tokens.lengths, options.batch_tokens)
        self.shards = [batches[i : i + SHARD_BATCHES] for i in range(0, len(batches), SHARD_BATCHES)]
        tokens = [sha256(part.tobytes()).hexdigest() for part in (self.tokens.ids, self.tokens.pooled, self.tokens.starts)]
        code = [file_sha256(ROOT / "pipeline/embedding" / name) for name in ("encoder.py", "pretrained.py")]
        self.fingerprint = fingerprint(tokens, self.encoder.options.model_dump(), self.encoder.identity, SHARD_BATCHES, code)
        self.directory = scratch() / "embeddings" / self.fingerprint

    def texts(self, shard: int) -> np.ndarray:
        """Return the indices of a shard's texts, in the order of its rows."""
        return np.concatenate(self.shards[shard])

    def embed(self) -> dict[str, Any]:
        """Compute the missing shards, divided among the processes; return figures for the run's record.

        Raises UserError if the processes see different texts, models or directories.
        """
        computed = tokens = rounds = 0
        seconds = 0.0
        while missing := self._missing():
            rounds += 1
            # Another launch that shares these shards may remove them once, when it finishes; they are then computed again.
            if rounds > 3:
                raise UserError(f"shards disappear from {self.directory}; set SPECTRAN_SCRATCH to a folder that all nodes see")
            share = missing[self.processes.rank :: self.processes.count]
            _ = self.encoder.model if share else None  # load the model before the clock starts
            start = time.perf_counter()
            self._compute(share)
            self.processes.gather(None)  # wait for all processes
            seconds += time.perf_counter() - start
            computed += len(missing)
            tokens += sum(int(self.tokens.lengths[self.texts(shard)].sum()) for shard in missing)
        return {
            "tokens": len(self.tokens.ids),
            "shards": len(self.shards),
            "embedded_now": {"shards": computed, "tokens": tokens, "seconds": seconds},
            **self.processes.record(),
            **_versions(),
        }

    def save(self, path: Path) -> tuple[int, int]:
        """Merge all shards into an .npy file of (N, l) float32, shard by shard; return (N, l).

        Raises OSError if the disk is full, UserError if a shard is missing or damaged.
        """
        shape = (len(self.tokens.lengths), self._rows(0).shape[1])
        embeddings = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # Allocate the file first: on a full disk this raises, whereas a write to a memory map kills the process (SIGBUS).
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
        """Delete all shards."""
        remove_directory(self.directory)

    def _file(self, shard: int) -> Path:
        return self.directory / f"{shard:06d}.npy"

    def _rows(self, shard: int) -> np.ndarray:
        """Return a shard's rows, (n, l) float32. Raises UserError if its file is missing or damaged."""
        path = self._file(shard)
        check_seal(path, "the embed stage")
        return np.load(path, allow_pickle=False)

    def _is_complete(self, shard: int) -> bool:
        """Return whether a shard exists, is undamaged and has a row for each text."""
        try:
            return len(self._rows(shard)) == len(self.texts(shard))
        except UserError:
            return False

    def _missing(self) -> list[int]:
        """Return the missing shards, as process 0 sees them.

        Raises UserError if this process has other texts, another model or another scratch than process 0.
        """
        missing = None
        if self.processes.first:
            self.directory.mkdir(parents=True, exist_ok=True)
            missing = [shard for shard in range(len(self.shards)) if not self._is_complete(shard)]
        fingerprint_of_first, missing = self.processes.gather((self.fingerprint, missing))[0]
        if fingerprint_of_first != self.fingerprint:
            raise UserError(
                f"process {self.processes.rank} has other texts, another model or another encoder section than process 0; "
                "use the same checkout, items.parquet and model on every node, and a `dtype` other than auto where they differ"
            )
        if not self.directory.is_dir():
            raise UserError(
                f"process {self.processes.rank} does not see {self.directory} of process 0; "
                "set SPECTRAN_SCRATCH to a folder that every node sees"
            )
        return missing

    def _compute(self, shards: list[int]) -> None:
        """Embed and write shards. Process 0 shows its own progress: items/s, tokens/s and time left."""
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
    """Return the versions of the packages that decide embeddings."""
    from importlib.metadata import version

    return {name: version(name) for name in ("accelerate", "tokenizers", "transformers")}
