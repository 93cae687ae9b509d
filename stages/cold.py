"""Measure how well adapters rank items that were held out of training, by their texts alone: `python -m stages.cold`.

A share of the items is taken out of the selected dataset. The named adapters, or those of the grid except Base, are trained on
the rest with the settings of params.yaml, and rank the held-out test items of their users. Writes metrics/cold/<dataset>. The
report of a grid shows it if `grid.dim` equals `dim` (the defaults, 64 and 128, differ) and all else is the same.
"""

from common.arguments import Arguments
from common.errors import UserError
from common.names import check_name
from common.vector_math import select_kernels
from pipeline.grid.held_out import made_from, write_figures
from pipeline.params import load_params
from pipeline.runs import watched
from stages import run


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help="default: those of the grid, without base")
    parser.add_argument("--share", type=float, default=0.2, help="share of the items to hold out (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of that draw (default: 0)")
    given = parser.parse_args()
    params = load_params()
    adapters = [check_name("adapter", name, params.adapters) for name in given.adapters]
    if not 0 < given.share < 1:
        raise UserError(f"--share is {given.share}; choose one between 0 and 1")
    if given.seed < 0:
        raise UserError(f"--seed is {given.seed}; choose 0 or more")
    adapters = adapters or [name for name in params.grid.adapters if name != "base"]
    choice = (params.dataset, params.encoder, params.backbone, params.dim, adapters)
    check_unchanged = watched(params, lambda today: made_from(today, *choice))
    select_kernels()

    import polars as pl

    from pipeline.serving.cold import check_adapters, hold_out, measure, nearest_text, popularity_metrics

    held = hold_out(params, given.share, given.seed)
    check_adapters(params, held, adapters)
    rows = [
        {"method": "popularity", "ids": "", **popularity_metrics(held)},
        {"method": "nearest text", "ids": "", **nearest_text(params, held)},
    ]
    for adapter in adapters:
        rows += [{"method": adapter, "ids": ids, **found} for ids, found in measure(params, held, adapter).items()]
    check_unchanged()
    table = write_figures(params, held.drawn, rows)
    print(pl.DataFrame(rows).write_csv(float_precision=4), end="")
    counts = f"{len(held.embeddings):,} of {len(held.embeddings) + len(held.known):,} items held out"
    return f"{params.dataset}: {counts}, test item of {len(held.targets):,} users, in {table}"


if __name__ == "__main__":
    run(main)
