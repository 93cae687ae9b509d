"""Lists of a grid, for tests."""

from typing import Any

from pipeline.params import Grid


def grid(**lists: Any) -> Grid:
    """Return a grid of two datasets and two adapters, with some lists replaced."""
    empty = {
        "ablations": {"datasets": [], "backbones": ["sasrec"], "variants": ["full"]},
        "dimensions": {"datasets": [], "backbones": ["sasrec"], "adapters": ["x"], "dims": [8]},
        "tuning": {"datasets": [], "backbones": ["sasrec"], "losses": ["info_nce"], "trials": 2},
    }
    return Grid(
        **({"dim": 16, "datasets": ["a", "b"], "backbones": ["sasrec"], "adapters": ["x", "y"], "seeds": [0]} | empty | lists)
    )
