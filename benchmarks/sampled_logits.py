"""Time of the sampled loss with 64 negatives per target, forward and backward, with three ways to compute its logits.

sampled: `models.losses.info_nce`. dense: one product with all items, then a gather. gathered: a gather of rows, then products.
`python -m benchmarks.sampled_logits` prints, by catalogue size, the time of the other two as a multiple of `sampled`.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.core.loss import normalised
from models.losses.info_nce import draw_negatives, info_nce

TARGETS, DIM, NEGATIVES, TEMPERATURE = 1400, 128, 64, 0.07  # a batch of 256 Office users
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def sampled(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    return info_nce(states, table, targets, negatives, TEMPERATURE).mean()


def dense(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    items = torch.cat([targets[:, None], negatives], dim=1)
    return _loss((normalised(states) @ normalised(table).T).gather(1, items))


def gathered(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    items = torch.cat([targets[:, None], negatives], dim=1)
    return _loss(torch.einsum("td,tmd->tm", normalised(states), F.embedding(items, normalised(table))))


def _loss(cosines: Tensor) -> Tensor:
    return F.cross_entropy(cosines / TEMPERATURE, torch.zeros(len(cosines), dtype=torch.long))


def milliseconds(ways: list[Loss], n_items: int, repeats: int = 7) -> list[float]:
    """Return the median time of each way in milliseconds; they are run in turns."""
    torch.manual_seed(0)
    states, table = torch.randn(TARGETS, DIM, requires_grad=True), torch.randn(n_items, DIM, requires_grad=True)
    targets = torch.randint(n_items, (TARGETS,))
    negatives = draw_negatives(targets, n_items, NEGATIVES, torch.Generator().manual_seed(0))
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, way_times in zip(ways, times, strict=True):
            start = time.perf_counter()
            way(states, table, targets, negatives).backward()
            way_times.append(1e3 * (time.perf_counter() - start))
    return [sorted(way_times)[repeats // 2] for way_times in times]


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {TARGETS} targets, dim {DIM}, {NEGATIVES} negatives, forward and backward")
    for n_items in (1_000, 2_414, 5_000, 11_757, 22_948):
        by_sampling, by_dense, by_gather = milliseconds([sampled, dense, gathered], n_items)
        ratios = f"dense x {by_dense / by_sampling:.1f}, gathered x {by_gather / by_sampling:.1f}"
        print(f"{n_items:>6} items: {by_sampling:6.1f} ms; {ratios}")


if __name__ == "__main__":
    main()
