"""Seconds of the ten best items of every user, beside a plain product and topk; requests a second of a served package.

    python -m benchmarks.serving best --users 100000 --items 100000
    python -m benchmarks.serving load data/packages/selected --seconds 30

The first draws random unit vectors and prints the memory that ours adds. The second starts a server on this machine, so that it
shares the cores with the client.
"""

import http.client
import json
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.evaluation.best import Catalogue, best_items

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
    """Send requests at a fixed rate over kept connections, each for ten items after ten random ones; print rate and latencies."""
    with serving(given.package) as port:
        answers = requests_at(port, given.package, given.rate, given.seconds)
    late = np.array([seconds for status, seconds in answers if status == 200])
    lost = len(answers) - len(late)
    print(f"{len(answers):,} requests in {given.seconds:.0f} s, {lost} lost; {len(late) / given.seconds:.0f} a second")
    for share in (50, 95, 99, 100):
        print(f"p{share:<4}{np.percentile(late, share) * 1000:8.1f} ms")


@contextmanager
def serving(package: Path) -> Iterator[int]:
    """Start the package's own server in a process of its own; yield its port once it answers; end it afterwards."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "serve.py", "--port", str(port)], cwd=package, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if server.poll() is not None:
                raise SystemExit(f"the server ended with status {server.returncode}")
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def requests_at(port: int, package: Path, rate: float, seconds: float, clients: int = 16) -> list[tuple[int, float]]:
    """Status (0 for none) and seconds of every request, counted from when it was due: waiting for a free client counts."""
    ids = json.loads((package / "items.json").read_text(encoding="utf-8"))["ids"]
    draw = random.Random(0)  # noqa: S311 - not a secret
    bodies = [json.dumps({"history": draw.sample(ids, 10), "k": K}).encode() for _ in range(int(rate * seconds))]
    answers: list[tuple[int, float]] = []
    waiting = iter(enumerate(bodies))
    turn = threading.Lock()
    start = time.perf_counter() + 0.5

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while True:
            with turn:
                number, body = next(waiting, (None, b""))
            if number is None:
                return
            due = start + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                complete = len(json.loads(response.read())["items"]) == K
                answers.append((response.status if complete else 0, time.perf_counter() - due))
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                connection.close()
                answers.append((0, time.perf_counter() - due))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


if __name__ == "__main__":
    main()
