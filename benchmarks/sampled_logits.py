"""Logits of 1 + 64 sampled items a target: every item by one GEMM and then gather, or gather rows and then multiply.

`python -m benchmarks.sampled_logits` prints both, forward and backward, by catalogue size, and their ratio.
"""

import time

import torch
from torch.nn import functional as F

from models import losses

TARGETS, DIM, NEGATIVES = 1400, 128, 64  # a batch of 256 Office users


def seconds(n_items: int, dense: bool, repeats: int = 7) -> float:
    """Median seconds of one loss, forward and backward."""
    torch.manual_seed(0)
    states = F.normalize(torch.randn(TARGETS, DIM), dim=1).requires_grad_()
    table = F.normalize(torch.randn(n_items, DIM), dim=1).requires_grad_()
    targets = torch.randint(n_items, (TARGETS,))
    negatives = losses.draw_negatives(targets, n_items, NEGATIVES, torch.Generator().manual_seed(0))
    threshold, losses.DENSE_ITEMS = losses.DENSE_ITEMS, n_items if dense else 0
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        losses.info_nce(states, table, targets, negatives, 0.07).backward()
        times.append(time.perf_counter() - start)
    losses.DENSE_ITEMS = threshold
    return sorted(times)[repeats // 2]


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {TARGETS} targets, dim {DIM}, {NEGATIVES} negatives")
    for n_items in (1_000, 2_414, 5_000, 8_000, 11_757, 16_384, 22_948):
        dense, gathered = seconds(n_items, True), seconds(n_items, False)
        print(f"{n_items:>6} items: dense {1e3 * dense:6.1f} ms, gathered {1e3 * gathered:6.1f} ms, ratio {dense / gathered:.2f}")


if __name__ == "__main__":
    main()
