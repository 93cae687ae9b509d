"""Write a small click log and a catalogue to try the pipeline on your own data with: `python -m stages.example`.

clicks.csv and catalogue.csv look like a shop's export: semicolons, times with a zone, HTML in titles, a few gaps.
"""

from pathlib import Path

import polars as pl

from common.arguments import Arguments
from common.errors import UserError
from pipeline.artifacts import atomic_file
from pipeline.data.sources.demo import generate
from stages import run

ITEMS, USERS = 250, 400
LOG, CATALOGUE = Path("clicks.csv"), Path("catalogue.csv")


def main() -> str:
    Arguments(description=__doc__).parse_args()
    for path in (LOG, CATALOGUE):
        if path.exists():
            raise UserError(f"{path} is there already; move it away first")
    clicks, items = generate(0, ITEMS, USERS)
    sku = pl.col("item_id").str.replace("item", "")
    row = pl.int_range(pl.len())
    log = clicks.select(
        visitor="user_id",
        sku=sku,
        time=pl.from_epoch(pl.col("timestamp") + row % 3600, "s").dt.strftime("%Y-%m-%dT%H:%M:%S+01:00"),
    ).with_columns(time=pl.when(row % 500 == 0).then(pl.lit("")).otherwise("time"))
    catalogue = items.select(sku=sku, name=pl.col("title").str.replace(" for ", " &ndash; for "), brand="brand")
    for path, table in ((LOG, log), (CATALOGUE, catalogue.filter(row % 50 != 7))):
        with atomic_file(path) as partial:
            table.write_csv(partial, separator=";")
    return f"{log.height:,} clicks of {USERS} visitors in {LOG}, {catalogue.height - ITEMS // 50} items in {CATALOGUE}"


if __name__ == "__main__":
    run(main)
