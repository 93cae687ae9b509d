"""Seconds and memory of reading, checking and preprocessing a log of one's own: `python -m benchmarks.own_data`.

The log is generated: a tenth as many users as interactions, a hundredth as many items, popularity as 1 / (rank + 9), times in
milliseconds. Each stage is a process of its own; peak is the highest resident memory of it.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import polars as pl
import yaml

ROOT = Path(__file__).parents[1]
CHUNK = 5_000_000  # interactions that are generated together


def write_log(folder: Path, interactions: int, ending: str) -> None:
    """A log in parts, log-*.csv or log-*.parquet, and items.csv."""
    rng = np.random.default_rng(0)
    users, items = max(10, interactions // 10), max(10, interactions // 100)
    share = np.cumsum(1 / np.arange(10, items + 10))
    for part, start in enumerate(range(0, interactions, CHUNK)):
        size = min(CHUNK, interactions - start)
        item = np.searchsorted(share, rng.random(size) * share[-1])
        frame = pl.DataFrame({"user": rng.integers(0, users, size), "item": item, "at": rng.integers(0, 10**11, size)})
        log = frame.select(
            user_id=pl.format("u{}", "user"),
            item_id=pl.format("B{}", pl.col("item") + 10**8),
            timestamp=1_500_000_000_000 + pl.col("at"),
        )
        path = folder / f"log-{part}.{ending}"
        log.write_csv(path) if ending == "csv" else log.write_parquet(path)
    names = pl.DataFrame({"item": np.arange(items)})
    names.select(item_id=pl.format("B{}", pl.col("item") + 10**8), title=pl.format("Product {}", "item")).write_csv(
        folder / "items.csv"
    )


def measured(folder: Path, stage: str) -> tuple[float, float, float, str]:
    """Seconds, seconds of CPU time, peak in GiB, and the last line of a stage."""
    code = (
        "import resource, runpy, sys; sys.argv[1:] = ['mine']; "
        f"runpy.run_module('stages.{stage}', run_name='__main__', alter_sys=True); "
        "used = resource.getrusage(resource.RUSAGE_SELF); print('peak', used.ru_maxrss, used.ru_utime + used.ru_stime)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    unit = 1 if sys.platform == "darwin" else 1024
    peak, cpu = re.findall(r"peak (\d+) ([\d.]+)", done.stdout)[0]
    return seconds, float(cpu), int(peak) * unit / 2**30, done.stdout.splitlines()[-2]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--interactions", type=int, default=5_000_000)
    parser.add_argument("--format", choices=("csv", "parquet"), default="csv")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder, given.interactions, given.format)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        source = {"kind": "files", "interactions": f"log-*.{given.format}", "items": "items.csv"}
        params["sources"]["mine"] = source
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        for stage in ("download", "preprocess"):
            seconds, cpu, peak, said = measured(folder, stage)
            print(
                f"{given.interactions:,} interactions, {given.format}: {stage} {seconds:.1f} s ({cpu:.1f} s of CPU time), "
                f"peak {peak:.2f} GiB ({said})",
                flush=True,
            )


if __name__ == "__main__":
    main()
