"""Seconds of an epoch of training: this project, a plain PyTorch loop, RecTools and RecBole, on the same interactions.

    python -m benchmarks.training toys --rectools PYTHON --recbole PYTHON [--profile]

PYTHON is the interpreter of an environment with that library: `pip install 'rectools[torch]'`; `pip install recbole
'setuptools<81'`. A library without PYTHON is left out. All use the same number of threads, batches of 256 users (RecBole: 256
samples), dim 128, two blocks and histories of 10. This project and the plain loop alternate, epoch by epoch. Wall-clock time: run
nothing else on the machine. --profile prints the time of our epoch by operator.
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

from models.core.adapter import Spectrum
from pipeline.device import select_device, training_precision
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
    """A dataset whose samples are users: a padded sequence and, for each of its targets, negatives other than the target."""

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
    """SASRec as it is usually implemented: padded positions are computed, and rows of the table are gathered."""

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
    """Train the plain loop for an epoch."""
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
    """Return the smallest time of several calls in seconds, without the first call."""
    return min([timed(function, *arguments) for _ in range(repeats)][1:])


def matrix_rate() -> float:
    """Return the FLOP/s of a float32 matrix product of 1,500 x 1,500 x 1,500."""
    a, b = torch.randn(2, 1500, 1500)
    return 2 * 1500**3 / best(torch.mm, a, b)


def stream_rate(n_items: int, dim: int) -> float:
    """Return the bytes per second of adding two tables of items into a third."""
    a, b, c = torch.randn(3, n_items, dim)
    return 3 * 4 * a.numel() / best(lambda: torch.add(a, b, out=c))


def row_rate(n_items: int, dim: int) -> float:
    """Return the bytes per second of reading rows of a table in random order, in sums of 65."""
    table, chosen = torch.randn(n_items, dim), torch.randint(n_items, (2000, 1 + NEGATIVES))
    return 4 * dim * chosen.numel() / best(lambda: F.embedding_bag(chosen, table, mode="sum"))


def lower_bound(sequences: SplitSequences, dim: int, parameters: int, batches: int, blocks: int = 2) -> dict[str, float]:
    """Return a lower bound for the seconds of an epoch, by part, from this machine's rates. Padding and other work are left out.

    products: q, k, v, output and feed-forward for every target, forward and twice backward. optimiser: Adam reads weight,
    gradient and two moments, and writes three of them; the normalisation reads the table forward, and reads and writes it
    backward. logits: for a target and its item or a negative, one row is read forward and two rows backward.
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
    """Run another library's script on a CSV of training items; return its JSON. RecBole itself holds out two items per user."""
    users, _ = read_sequences(Path("data/sequences") / dataset)
    training = users if name == "recbole" else users.with_columns(pl.col("items").list.head(pl.col("items").list.len() - 2))
    flat = training.select(pl.col("user_id").cast(pl.Categorical).to_physical().alias("user"), pl.col("items").alias("item"))
    flat = flat.explode("item").with_columns(time=pl.datetime(2014, 1, 1) + pl.duration(seconds=pl.int_range(pl.len())))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "interactions.csv"
        flat.write_csv(file)
        script = Path(__file__).parent / "peers" / f"{name}_sasrec.py"
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        command = [python, str(script), str(file), str(epochs), *([loss] if loss else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1])


def steps_of(
    dataset: str,
    adapter: str,
    backbone: str = "sasrec",
    loss: str = "info_nce",
    precision: str = "float32",
    spectrum: Spectrum | None = None,
) -> Steps:
    """Return the untrained steps of a backbone with an adapter, as params.yaml has them; spectrum: instead of its own."""
    select_device()
    use_deterministic_kernels()
    run = Run.of(load_params(), dataset=dataset, backbone=backbone, adapter=adapter, dim=128, changes={"train": {"loss": loss}})
    torch.manual_seed(0)
    model = build(run, spectrum or load_spectrum(run.spectrum))
    optimisers = make_optimisers(model, run.settings["train"], CPU)
    return Steps(model, optimisers, torch.Generator().manual_seed(0), training_precision(precision, CPU), 256)


def arguments_for(description: str) -> ArgumentParser:
    """Return a parser with the arguments dataset, --rectools and --recbole."""
    parser = ArgumentParser(description=description)
    parser.add_argument("dataset")
    for name in ("rectools", "recbole"):
        parser.add_argument(f"--{name}", metavar="PYTHON")
    return parser


def two_products(steps: Steps) -> float:
    """Return the seconds of U W^T and of its gradient with respect to W."""
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
    project = {
        "Base, sampled softmax": steps_of(dataset, "base"),
        "SpecTran, sampled softmax": steps_of(dataset, "spectran"),
        "Base, full softmax": steps_of(dataset, "base", loss="cross_entropy"),
    }
    base, spectran, full = project
    if arguments.profile:
        profile(project[base], train)
        return
    plain = Plain(sequences.n_items, 128, 10)
    plain_optimiser = torch.optim.Adam(plain.parameters())
    loader = DataLoader(Users(sequences), batch_size=256, shuffle=True)
    times: dict[str, list[float]] = {name: [] for name in (*project, "plain loop, sampled softmax")}
    for turn in range(arguments.epochs + 1):  # the first warms up
        for name, steps in project.items():
            times[name].append(timed(steps.epoch, train))
        if turn < 3:
            times["plain loop, sampled softmax"].append(timed(plain_epoch, plain, plain_optimiser, loader))
    seconds = {name: median(epochs[1:]) for name, epochs in times.items()}
    for name, loss in (("rectools", "sampled_softmax"), ("rectools", "softmax"), ("recbole", "")):
        if python := getattr(arguments, name):
            seconds[" ".join([name, loss]).strip()] = peer(name, python, dataset, 2, loss)["epoch"][-1]
    batches = -(-len(train) // 256)
    parts = lower_bound(sequences, 128, project[base].model.n_trainable(), batches)
    products = two_products(project[spectran]) * batches
    extra = [with_text - without for with_text, without in zip(times[spectran][1:], times[base][1:], strict=True)]
    print(f"{dataset}, {torch.get_num_threads()} threads, seconds of an epoch ({sequences.n_training_targets:,} targets)")
    for name, value in seconds.items():
        print(f"{name:34}{value:8.2f}{value / seconds[base]:8.2f} x {base}")
    part_list = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    bound = sum(parts.values())
    print(
        f"lower bound {bound:.2f} ({part_list}): {base} takes {seconds[base] / bound:.2f} x of it, "
        f"and {seconds[base] / parts['products']:.2f} x of the products"
    )
    ratios = f"{seconds[spectran] / seconds[base]:.2f} x Base; extra {median(extra):.2f}, {median(extra) / products:.2f} x"
    print(f"SpecTran: {ratios} its two products")
    for name in seconds:
        if "rectools softmax" in name:
            print(f"full softmax: RecTools takes {seconds[name] / seconds[full]:.2f} x {full}")


def profile(steps: Steps, train: Tensor) -> None:
    """Print the CPU time of the operators of an epoch, after one for warming up."""
    steps.epoch(train)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        steps.epoch(train)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    main()
