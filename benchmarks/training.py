"""Seconds of an epoch and of a full ranking: ours, a plain PyTorch loop, RecTools and RecBole, on the same interactions.

    python -m benchmarks.training office --rectools PYTHON --recbole PYTHON

PYTHON is the interpreter of an environment of that peer: `pip install 'rectools[torch]'`; `pip install recbole 'setuptools<81'`.
Without one the peer is left out. All get as many threads, batches of 256 users (RecBole: 256 samples), dim 128, two blocks,
histories of 10. Ours and the plain loop take turns, epoch by epoch. Counted is the CPU time of the process, which other work on
the machine disturbs less than the clock does.
"""

import json
import os
import subprocess
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.sequences import Sequences, load_sequences, read_artifact
from pipeline.spectrum import load_spectrum
from pipeline.training import _train_epoch, build, evaluate_ranks

CPU = torch.device("cpu")
NEGATIVES, TEMPERATURE = 64, 0.07


class Users(Dataset):
    """A sample is a user: a padded sequence and, for each of its targets, negatives that are not the target."""

    def __init__(self, sequences: Sequences) -> None:
        self.rows, self.n_items = sequences.train, sequences.n_items

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, user: int) -> tuple[Tensor, Tensor, Tensor]:
        row = self.rows[user]
        targets = row[1:]
        negatives = torch.randint(self.n_items - 1, (len(targets), NEGATIVES))
        return row[:-1], targets, negatives + (negatives >= targets[:, None])


class Plain(nn.Module):
    """SASRec as it is usually written: padded positions computed, rows of the table gathered."""

    def __init__(self, n_items: int, dim: int, history: int) -> None:
        super().__init__()
        self.n_items = n_items
        self.items = nn.Embedding(n_items + 1, dim, padding_idx=n_items)
        self.position = nn.Embedding(history, dim)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(dim),
                    "attention": nn.MultiheadAttention(dim, 1, dropout=0.2, batch_first=True),
                    "norm2": nn.LayerNorm(dim),
                    "feed": nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(0.2), nn.Linear(dim, dim), nn.Dropout(0.2)),
                }
            )
            for _ in range(2)
        )
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        size = tokens.shape[1]
        hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
        x = self.drop(self.items(tokens) + self.position(torch.arange(size)))
        for block in self.blocks:
            query = block["norm"](x)
            x = query + self.drop(block["attention"](query, x, x, attn_mask=hidden, need_weights=False)[0])
            x = x + block["feed"](block["norm2"](x))
            x = x * (tokens != self.n_items).unsqueeze(-1)
        return self.norm(x)


def plain_epoch(model: Plain, optimiser: torch.optim.Optimizer, loader: DataLoader) -> None:
    model.train()
    for tokens, targets, negatives in loader:
        present = tokens != model.n_items
        states = F.normalize(model(tokens), dim=-1)
        chosen = F.normalize(model.items(torch.cat([targets.unsqueeze(-1), negatives], -1)), dim=-1)  # (B, P, 65, d)
        logits = (states.unsqueeze(2) * chosen).sum(-1) / TEMPERATURE
        loss = F.cross_entropy(logits[present], torch.zeros(int(present.sum()), dtype=torch.long))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def matrix_rate() -> float:
    """FLOP in a second of CPU time, of a float32 matrix product of 1,500 x 1,500 x 1,500, best of 5."""
    a, b = torch.randn(2, 1500, 1500)
    times = []
    for _ in range(6):
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return 2 * 1500**3 / min(times[1:])


def floor(sequences: Sequences, dim: int, blocks: int = 2) -> tuple[float, float]:
    """FLOPs of the matrix products of an epoch and of a ranking, without padding: q, k, v, output, feed-forward, logits."""
    per_row = 2 * 6 * dim**2 * blocks
    rows = sequences.n_training_targets
    sampled = 2 * rows * (1 + NEGATIVES) * dim
    history = int((sequences.valid_history != sequences.n_items).sum())
    ranking = 2 * len(sequences.valid_target) * sequences.n_items * dim + history * per_row
    return 3 * (rows * per_row + sampled), ranking


def timed(function, *arguments) -> float:  # type: ignore[no-untyped-def]
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def peer(name: str, python: str, dataset: str, epochs: int) -> dict:
    """Run a peer's script in its environment on a CSV of the training items; RecBole holds two items a user out by itself."""
    users, _ = read_artifact(Path("data/sequences") / dataset)
    whole = users if name == "recbole" else users.with_columns(pl.col("items").list.head(pl.col("items").list.len() - 2))
    flat = whole.select(pl.col("user_id").cast(pl.Categorical).to_physical().alias("user"), pl.col("items").alias("item"))
    flat = flat.explode("item").with_columns(time=pl.datetime(2014, 1, 1) + pl.duration(seconds=pl.int_range(pl.len())))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "interactions.csv"
        flat.write_csv(file)
        script = Path(__file__).parent / "peers" / f"{name}_sasrec.py"
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(
            [python, str(script), str(file), str(epochs)], capture_output=True, text=True, check=True, env=environment, cwd=folder
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--epochs", type=int, default=5)
    for name in ("rectools", "recbole"):
        parser.add_argument(f"--{name}", metavar="PYTHON")
    arguments = parser.parse_args()
    params = load_params()
    sequences = load_sequences(Path("data/sequences") / arguments.dataset, 10, CPU)
    train = sequences.train[sequences.train[:, -2] != sequences.n_items]
    ours = {}
    for adapter in ("base", "spectran"):
        for loss in ("info_nce", "cross_entropy"):
            if adapter == "spectran" and loss == "cross_entropy":
                continue
            run = Run.of(params, dataset=arguments.dataset, backbone="sasrec", adapter=adapter, dim=128)
            run.settings["train"]["loss"] = loss
            torch.manual_seed(0)
            model = build(run, load_spectrum(run.spectrum))
            ours[f"{adapter}, {loss}"] = (
                model,
                torch.optim.Adam(model.parameters(), fused=True),
                torch.Generator().manual_seed(0),
            )
    plain = Plain(sequences.n_items, 128, 10)
    plain_optimiser = torch.optim.Adam(plain.parameters())
    loader = DataLoader(Users(sequences), batch_size=256, shuffle=True)
    epoch: dict[str, list[float]] = {name: [] for name in (*ours, "plain loop")}
    ranking = []
    for _ in range(arguments.epochs + 1):  # the first warms up
        for name, (model, optimiser, generator) in ours.items():
            epoch[name].append(timed(_train_epoch, model, optimiser, train, 256, generator))
        epoch["plain loop"].append(timed(plain_epoch, plain, plain_optimiser, loader))
        ranking.append(timed(evaluate_ranks, ours["base, info_nce"][0], sequences.valid_history, sequences.valid_target))
    rate = matrix_rate()
    flops = floor(sequences, 128)
    threads = torch.get_num_threads()
    rows = [(name, median(times[1:]), None) for name, times in epoch.items()]
    rows[0] = (rows[0][0], rows[0][1], median(ranking[1:]))
    for name in ("rectools", "recbole"):
        if python := getattr(arguments, name):
            seen = peer(name, python, arguments.dataset, 2)
            rows.append((name, seen["epoch"][-1], seen["ranking"]))
    rows.insert(0, ("floor of matrix products", flops[0] / rate, flops[1] / rate))
    base, ranked = median(epoch["base, info_nce"][1:]), median(ranking[1:])
    print(f"{arguments.dataset}, {threads} thread{'s' * (threads > 1)}, {rate / 1e9:.0f} GFLOP in a second of CPU; CPU seconds")
    print(f"{'':28}{'epoch':>8}{'x ours':>8}{'ranking':>9}{'x ours':>8}")
    for name, seconds, users in rows:
        text = f"{name:28}{seconds:8.2f}{seconds / base:8.2f}"
        print(text + (f"{users:9.2f}{users / ranked:8.2f}" if users else ""))


if __name__ == "__main__":
    main()
