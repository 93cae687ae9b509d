"""Seconds of a full ranking of all users with SASRec: this project, RecTools and RecBole, on the same interactions.

    python -m benchmarks.evaluation toys --rectools PYTHON --recbole PYTHON

PYTHON is as in `benchmarks.training`. All encode each user's history of 10 items and score every item. This project computes one
rank per user, or, as in validation, ranks that are exact up to 20; RecBole the metrics at 10 and 20, RecTools the 20 best items.
Wall-clock time: run nothing else on the machine.
"""

from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.training import CPU, arguments_for, matrix_rate, peer, steps_of, timed
from pipeline.training.batches import load_sequences
from pipeline.training.loop import VALIDATION_CUTOFFS, evaluate_ranks

TURNS = 8
EPOCHS = 3


def main() -> None:
    arguments = arguments_for(__doc__.splitlines()[0]).parse_args()
    dataset = arguments.dataset
    sequences = load_sequences(Path("data/sequences") / dataset, 10, CPU)
    steps = steps_of(dataset, "base")
    for _ in range(EPOCHS):  # how soon validation can leave users out depends on what the model has learned
        steps.epoch(sequences.train[sequences.train[:, -2] != sequences.n_items])
    inputs = (steps.model, sequences.valid_history, sequences.valid_target)
    seconds = {"this project": median([timed(evaluate_ranks, *inputs) for _ in range(TURNS)][1:])}
    for name, epochs in (("rectools", 1), ("recbole", 0)):
        if python := getattr(arguments, name):
            seconds[name] = peer(name, python, dataset, epochs)["ranking"]
    validate = partial(evaluate_ranks, beyond=max(VALIDATION_CUTOFFS))
    seconds["this project, as in validation"] = median([timed(validate, *inputs) for _ in range(TURNS)][1:])
    seconds["this project, again"] = median([timed(evaluate_ranks, *inputs) for _ in range(TURNS)][1:])
    users, dim = len(sequences.valid_target), 128
    tokens = int((sequences.valid_history != sequences.n_items).sum())
    # Scores of all items; keys and values of every token in both blocks; the other products for every token in the first block,
    # and for one position per user in the last block.
    flops = 2 * users * sequences.n_items * dim + 2 * dim**2 * (2 * 2 * tokens + 4 * tokens + 4 * users)
    bound = flops / matrix_rate()
    print(f"{dataset}, {torch.get_num_threads()} threads, seconds of ranking {sequences.n_items:,} items for {users:,} users")
    for name, value in seconds.items():
        print(f"{name:34}{value:8.2f}{value / seconds['this project']:8.2f} x")
    print(f"lower bound by matrix products {bound:.2f}: this project takes {seconds['this project'] / bound:.2f} x")


if __name__ == "__main__":
    main()
