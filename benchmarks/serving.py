"""Seconds of the ten best items of every user, beside a plain product and topk; requests a second of a served package.

    python -m benchmarks.serving best --users 100000 --items 100000
    python -m benchmarks.serving load data/packages/selected --seconds 30

The first draws random unit vectors and prints the memory that ours adds. The second starts a server on this machine, so that it
shares the cores with the client.
"""

import resource
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from torch.nn import functional as F

from pipeline.serving.best import Catalogue, best_items

K = 10


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    best = kinds.add_parser("best")
    best.add_argument("--users", type=int, default=100_000)
    best.add_argument("--items", type=int, default=100_000)
    best.add_argument("--dim", type=int, default=128)
    load = kinds.add_parser("load")
    load.add_argument("package", type=Path)
    load.add_argument("--seconds", type=float, default=30)
    load.add_argument("--rate", type=float, default=500, help="requests a second that the client starts")
    arguments = parser.parse_args()
    {"best": of_best, "load": of_load}[arguments.kind](arguments)


def of_best(given: Namespace) -> None:
    """Compare best_items with a product and topk in float32, which is not exact, over the same users in turns."""
    torch.manual_seed(0)
    states, table = (F.normalize(torch.randn(n, given.dim), dim=1) for n in (given.users, given.items))
    catalogue = Catalogue(table, "cosine")
    ours, plain = 0.0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = 0
    for block in states.split(8192):
        start = time.perf_counter()
        best_items(block, catalogue, K)
        ours += time.perf_counter() - start
        grown = max(grown, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        start = time.perf_counter()
        for part in block.split(256):
            (part @ catalogue.rows.T).topk(K)
        plain += time.perf_counter() - start
        before = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(f"{given.users:,} users, {given.items:,} items, dim {given.dim}, {torch.get_num_threads()} threads")
    print(f"ours {ours:.1f} s, product and topk {plain:.1f} s: {ours / plain:.2f} x; {grown / 1024:.0f} MiB more memory")


def of_load(given: Namespace) -> None:
    raise SystemExit("not yet")


if __name__ == "__main__":
    main()
