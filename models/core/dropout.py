"""Dropout with cheap random bits on a CPU, where torch draws one floating-point number per element."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Return x with elements zeroed with probability p and the rest divided by 1 - p; x itself if not training.

    On a CPU, p is rounded to a multiple of 1 / 65,536.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * LEVELS)
    # Four 16-bit draws from every 64 bits of a NumPy stream, which torch's generator seeds: faster than torch's own stream.
    bits = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw(-(-x.numel() // 4))
    kept = torch.from_numpy(bits.view(np.int16))[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
