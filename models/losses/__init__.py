"""Losses: each measures how well a state predicts the next item.

To add a loss, add a file here and a line in this registry; the contract tests then include it.
"""

from common.registry import Registry

LOSSES = Registry(
    "loss",
    "models.losses",
    {
        "info_nce": "sampled softmax",
        "cross_entropy": "full softmax",
    },
)
