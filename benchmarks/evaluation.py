"""Seconds of a full ranking of every user: ours, RecTools' and RecBole's SASRec, on the same interactions.

    python -m benchmarks.evaluation toys --rectools PYTHON --recbole PYTHON

PYTHON as in `benchmarks.training`. All encode every user's history of 10 and score every item; ours leaves one rank a user,
RecBole the metrics at 10 and 20, RecTools the 20 best items. Seconds are the clock's, for a machine without other work.
"""

from pathlib import Path
from statistics import median

import torch

from benchmarks.training import CPU, arguments_for, matrix_rate, peer, steps_of, timed
from pipeline.training.batches import load_sequences
from pipeline.training.loop import evaluate_ranks

TURNS = 8


def main() -> None:
    arguments = arguments_for(__doc__.splitlines()[0]).parse_args()
    dataset = arguments.dataset
    sequences = load_sequences(Path("data/sequences") / dataset, 10, CPU)
    model = steps_of(dataset, "base").model
    given = (model, sequences.valid_history, sequences.valid_target)
    seconds = {"ours": median([timed(evaluate_ranks, *given) for _ in range(TURNS)][1:])}
    for name, epochs in (("rectools", 1), ("recbole", 0)):
        if python := getattr(arguments, name):
            seconds[name] = peer(name, python, dataset, epochs)["ranking"]
    seconds["ours, again"] = median([timed(evaluate_ranks, *given) for _ in range(TURNS)][1:])
    users, dim = len(sequences.valid_target), 128
    tokens = int((sequences.valid_history != sequences.n_items).sum())
    # Scores; keys and values of every token in two blocks, the rest of every token in the first, of every user in the last.
    flops = 2 * users * sequences.n_items * dim + 2 * dim**2 * (2 * 2 * tokens + 4 * tokens + 4 * users)
    least = flops / matrix_rate()
    print(f"{dataset}, {torch.get_num_threads()} threads, seconds of ranking {sequences.n_items:,} items for {users:,} users")
    for name, value in seconds.items():
        print(f"{name:14}{value:8.2f}{value / seconds['ours']:8.2f} x ours")
    print(f"floor of matrix products {least:.2f}: ours is {seconds['ours'] / least:.2f} x")


if __name__ == "__main__":
    main()
