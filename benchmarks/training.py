"""Seconds of an epoch of training: ours, a plain PyTorch loop, RecTools and RecBole, on the same interactions.

    python -m benchmarks.training toys --rectools PYTHON --recbole PYTHON [--profile]

PYTHON is the interpreter of an environment of that peer: `pip install 'rectools[torch]'`; `pip install recbole 'setuptools<81'`.
Without one the peer is left out. All get as many threads, batches of 256 users (RecBole: 256 samples), dim 128, two blocks,
histories of 10. Ours and the plain loop take turns, epoch by epoch. Seconds are the clock's, for a machine without other work.
--profile: where the time of our epoch goes, operator by operator.
"""

import json
import os
import subprocess
import tempfile
import time
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from pipeline.device import select_device
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training.batches import SplitSequences, load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import build, make_optimisers, use_deterministic_kernels
from pipeline.training.sequences import read_sequences
from pipeline.training.steps import Steps

CPU = torch.device("cpu")
NEGATIVES, TEMPERATURE = 64, 0.07


class Users(Dataset):
    """A sample is a user: a padded sequence and, for each of its targets, negatives that are not the target."""

    def __init__(self, sequences: SplitSequences) -> None:
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


def best(function, *arguments, repeats: int = 6) -> float:  # type: ignore[no-untyped-def]
    """The least seconds of some calls; the first is not counted."""
    return min([timed(function, *arguments) for _ in range(repeats)][1:])


def matrix_rate() -> float:
    """FLOP a second of a float32 matrix product of 1,500 x 1,500 x 1,500."""
    a, b = torch.randn(2, 1500, 1500)
    return 2 * 1500**3 / best(torch.mm, a, b)


def stream_rate(n_items: int, dim: int) -> float:
    """Bytes a second of a sum of two tables of items into a third."""
    a, b, c = torch.randn(3, n_items, dim)
    return 3 * 4 * a.numel() / best(lambda: torch.add(a, b, out=c))


def row_rate(n_items: int, dim: int) -> float:
    """Bytes a second of rows of a table that are read in random order, summed by 65."""
    table, chosen = torch.randn(n_items, dim), torch.randint(n_items, (2000, 1 + NEGATIVES))
    return 4 * dim * chosen.numel() / best(lambda: F.embedding_bag(chosen, table, mode="sum"))


def floor(sequences: SplitSequences, dim: int, parameters: int, batches: int, blocks: int = 2) -> dict[str, float]:
    """Seconds of an epoch that this machine's rates ask for, by part, without padding and without whatever else a model computes.

    products: q, k, v, output and feed-forward of every target's row, forward and twice backward. optimiser: Adam reads weight,
    gradient and two moments, and writes three of them; of every row's length, the table is read forward and read and written
    backward. logits: of a target with its item and its negatives, a row a pair is read forward and two backward.
    """
    targets = sequences.n_training_targets
    flops = 3 * targets * 2 * 6 * dim**2 * blocks
    streamed = 4 * batches * (7 * parameters + 3 * sequences.n_items * dim)
    rows = 4 * 3 * targets * (1 + NEGATIVES) * dim
    return {
        "products": flops / matrix_rate(),
        "optimiser": streamed / stream_rate(sequences.n_items, dim),
        "logits": rows / row_rate(sequences.n_items, dim),
    }


def timed(function, *arguments) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def peer(name: str, python: str, dataset: str, epochs: int, loss: str = "") -> dict:
    """Run a peer's script in its environment on a CSV of the training items; RecBole holds two items a user out by itself."""
    users, _ = read_sequences(Path("data/sequences") / dataset)
    whole = users if name == "recbole" else users.with_columns(pl.col("items").list.head(pl.col("items").list.len() - 2))
    flat = whole.select(pl.col("user_id").cast(pl.Categorical).to_physical().alias("user"), pl.col("items").alias("item"))
    flat = flat.explode("item").with_columns(time=pl.datetime(2014, 1, 1) + pl.duration(seconds=pl.int_range(pl.len())))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "interactions.csv"
        flat.write_csv(file)
        script = Path(__file__).parent / "peers" / f"{name}_sasrec.py"
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        command = [python, str(script), str(file), str(epochs), *([loss] if loss else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1])


def steps_of(dataset: str, adapter: str, loss: str = "info_nce") -> Steps:
    """Our SASRec with an adapter, as params.yaml sets it, before its first step."""
    select_device()
    use_deterministic_kernels()
    run = Run.of(load_params(), dataset=dataset, backbone="sasrec", adapter=adapter, dim=128, changes={"train": {"loss": loss}})
    torch.manual_seed(0)
    model = build(run, load_spectrum(run.spectrum))
    optimisers = make_optimisers(model, run.settings["train"], CPU)
    return Steps(model, optimisers, torch.Generator().manual_seed(0), nullcontext, 256)


def arguments_for(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument("dataset")
    for name in ("rectools", "recbole"):
        parser.add_argument(f"--{name}", metavar="PYTHON")
    return parser


def two_products(steps: Steps) -> float:
    """Seconds of U W^T and of its gradient in W, once each."""
    U = steps.model.adapter.U
    W, gradient = torch.randn(128, U.shape[1]), torch.randn(len(U), 128)
    return best(lambda: U @ W.T, repeats=20) + best(lambda: gradient.T @ U, repeats=20)


def main() -> None:
    parser = arguments_for(__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    dataset = arguments.dataset
    sequences = load_sequences(Path("data/sequences") / dataset, 10, CPU)
    train = sequences.train[sequences.train[:, -2] != sequences.n_items]
    ours = {
        "ours, Base, sampled softmax": steps_of(dataset, "base"),
        "ours, SpecTran, sampled softmax": steps_of(dataset, "spectran"),
        "ours, Base, full softmax": steps_of(dataset, "base", "cross_entropy"),
    }
    base, spectran, full = ours
    if arguments.profile:
        profile(ours[base], train)
        return
    plain = Plain(sequences.n_items, 128, 10)
    plain_optimiser = torch.optim.Adam(plain.parameters())
    loader = DataLoader(Users(sequences), batch_size=256, shuffle=True)
    seen: dict[str, list[float]] = {name: [] for name in (*ours, "plain loop, sampled softmax")}
    for turn in range(arguments.epochs + 1):  # the first warms up
        for name, steps in ours.items():
            seen[name].append(timed(steps.epoch, train))
        if turn < 3:
            seen["plain loop, sampled softmax"].append(timed(plain_epoch, plain, plain_optimiser, loader))
    seconds = {name: median(times[1:]) for name, times in seen.items()}
    for name, loss in (("rectools", "sampled_softmax"), ("rectools", "softmax"), ("recbole", "")):
        if python := getattr(arguments, name):
            seconds[" ".join([name, loss]).strip()] = peer(name, python, dataset, 2, loss)["epoch"][-1]
    batches = -(-len(train) // 256)
    parts = floor(sequences, 128, ours[base].model.n_trainable(), batches)
    products = two_products(ours[spectran]) * batches
    extra = [with_text - without for with_text, without in zip(seen[spectran][1:], seen[base][1:], strict=True)]
    print(f"{dataset}, {torch.get_num_threads()} threads, seconds of an epoch ({sequences.n_training_targets:,} targets)")
    for name, value in seconds.items():
        print(f"{name:34}{value:8.2f}{value / seconds[base]:8.2f} x ours")
    shown = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    whole = sum(parts.values())
    print(
        f"floor {whole:.2f} ({shown}): ours is {seconds[base] / whole:.2f} x; {seconds[base] / parts['products']:.2f} x products"
    )
    times = f"{seconds[spectran] / seconds[base]:.2f} x Base; extra {median(extra):.2f}, {median(extra) / products:.2f} x"
    print(f"SpecTran: {times} its two products")
    for name in seconds:
        if "rectools softmax" in name:
            print(f"full softmax: RecTools {seconds[name] / seconds[full]:.2f} x ours")


def profile(steps: Steps, train: Tensor) -> None:
    """Self CPU time of an epoch's operators, of a second epoch."""
    steps.epoch(train)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        steps.epoch(train)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    main()
