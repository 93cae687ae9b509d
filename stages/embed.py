"""Embed a dataset's item texts: `python -m stages.embed office minilm`."""

import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import polars as pl

from models.errors import UserError
from models.registry import check_name
from pipeline.artifacts import RUNS, atomic_directory, sha256, write_json
from pipeline.params import load_params
from pipeline.runs import sequences_directory
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("encoder")
    arguments = parser.parse_args()
    params = load_params()
    dataset = check_name("dataset", arguments.dataset, params.sources)
    encoder = params.encoders[check_name("encoder", arguments.encoder, params.encoders)]
    items = sequences_directory(dataset) / "items.parquet"
    if not items.is_file():
        raise UserError(f"{items} is missing; it is made by `python -m stages.preprocess {dataset}`")
    texts = pl.read_parquet(items)["text"].to_list()

    from pipeline.encoder import encode

    start = time.perf_counter()
    embeddings, seen = encode(texts, encoder)
    seconds = time.perf_counter() - start
    target = Path("data/embeddings") / dataset / arguments.encoder
    made_from = {"dataset": dataset, "encoder": encoder.model_dump(exclude={"batch_size"}), "items": sha256(items)}
    with atomic_directory(target, made_from) as directory:
        np.save(directory / "embeddings.npy", embeddings)
    write_json(RUNS / f"embed-{dataset}-{arguments.encoder}.json", {"seconds": seconds, **seen})
    n, width = embeddings.shape
    return f"{dataset}: {n:,} items x {width} in {target} ({n / seconds:,.0f} items/s)"


if __name__ == "__main__":
    run(main)
