"""Dropout whose noise is cheap on a CPU, where torch draws one floating-point number an element."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero elements with probability p and divide the rest by 1 - p; on a CPU, p is rounded to 1 / 65,536."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * LEVELS)
    # Four draws in every 64 bits, from a stream of NumPy's that torch's generator starts: faster than that one.
    bits = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw(-(-x.numel() // 4))
    kept = torch.from_numpy(bits.view(np.int16))[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
