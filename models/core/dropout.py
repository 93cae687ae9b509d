"""Dropout that is fast on a CPU, where torch draws one floating-point number per element."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Return x, of any shape, with elements set to zero with probability p and the others divided by 1 - p; x itself in a test.

    On a CPU, p is rounded to a multiple of 1 / 65,536.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * LEVELS)
    # NumPy's SFC64, seeded from torch's generator, gives four 16-bit draws per 64 bits, which is faster than torch's generator.
    bits = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw(-(-x.numel() // 4))
    kept = torch.from_numpy(bits.view(np.int16))[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
