"""The test: every item ranked for every user, once, with the weights that validation chose."""

import time
from pathlib import Path

import polars as pl

from pipeline.artifacts import atomic_file, sha256, write_json
from pipeline.device import select_device
from pipeline.runs import EVALUATION, ROOT, Run
from pipeline.sequences import load_sequences
from pipeline.spectrum import load_spectrum
from pipeline.training import evaluate_ranks, load_checkpoint, use_deterministic_kernels


def evaluate_checkpoint(directory: Path, run: Run) -> tuple[pl.DataFrame, float]:
    """Test rank of every user (user_id, rank), and the seconds that ranking took. Raises UserError for a foreign checkpoint."""
    device = select_device()
    use_deterministic_kernels()
    sequences = load_sequences(run.sequences, run.settings["train"]["max_history"], device)
    model = load_checkpoint(directory, run, load_spectrum(run.spectrum, device)).to(device)
    start = time.perf_counter()
    ranks = evaluate_ranks(model, sequences.test_history, sequences.test_target)
    seconds = time.perf_counter() - start
    smallest = pl.UInt16 if sequences.n_items < 2**16 else pl.UInt32
    return pl.DataFrame({"user_id": sequences.user_ids, "rank": pl.Series(ranks).cast(smallest)}), seconds


def evaluate_run(run: Run) -> None:
    """Add the test ranks of a finished run to its place in scratch."""
    ranks, seconds = evaluate_checkpoint(run.scratch, run)
    with atomic_file(run.scratch / "ranks.parquet") as partial:
        ranks.write_parquet(partial)
    write_json(run.scratch / "inference.json", {"seconds": seconds, "code": sha256(ROOT / EVALUATION)})
