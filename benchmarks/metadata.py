"""Time of preprocessing if the metadata lists a whole category: `python -m benchmarks.metadata [lines]` (default 1,500,000).

It writes a generated dataset in Amazon's format, in which 1 item of 60 has reviews, to a temporary folder, and times the check
and the preprocessing.
"""

import gzip
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.data.interactions import build_sequences
from pipeline.data.sources import amazon2014
from pipeline.data.sources.amazon2014 import Amazon2014
from pipeline.params import Preprocess

FILLER = 'It\'s a fine product; "really" fine. ' * 15


def write_dataset(folder: Path, lines: int, source: Amazon2014) -> None:
    """Write reviews of lines / 60 items, and metadata of `lines` items, in the format of the official files."""
    rng = np.random.default_rng(0)
    reviewed = lines // 60
    reviews, metadata = (folder / name for name in amazon2014.files_of(source))
    with gzip.open(reviews, "wt", compresslevel=1) as file:
        for user in range(reviewed * 2):
            for item in rng.choice(reviewed, size=8, replace=False):
                day = int(rng.integers(16_000)) * 86_400
                file.write(json.dumps({"reviewerID": f"U{user}", "asin": f"A{item:09d}", "unixReviewTime": day}) + "\n")
    with gzip.open(metadata, "wt", compresslevel=1) as file:
        for item in range(lines):
            record = {
                "asin": f"A{item:09d}",
                "title": f"Product {item}",
                "description": FILLER,
                "related": {"also_bought": [f"A{other:09d}" for other in rng.integers(lines, size=15)]},
            }
            file.write(repr(record) + "\n")


def main() -> None:
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 1_500_000
    source = Amazon2014(kind="amazon2014", name="Generated")
    with tempfile.TemporaryDirectory() as name:
        mirror, raw = Path(name) / "mirror", Path(name) / "raw"
        mirror.mkdir()
        raw.mkdir()
        write_dataset(mirror, lines, source)
        start = time.perf_counter()
        amazon2014.fetch(source, str(mirror), raw)
        fetched = time.perf_counter()
        size = build_sequences(amazon2014.read(source, raw), Preprocess()).statistics
        done = time.perf_counter()
    print(
        f"{lines:,} metadata lines: copy and check {fetched - start:.1f} s, preprocess {done - fetched:.1f} s "
        f"({size['users']:,} users, {size['items']:,} items, {size['interactions']:,} interactions)"
    )


if __name__ == "__main__":
    main()
