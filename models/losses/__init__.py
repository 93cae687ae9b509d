"""Losses: how far a state is from the item that came next.

A new loss is one file here and one line in this registry; the contract tests pick it up.
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
