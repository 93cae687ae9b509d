"""Backbones: from a sequence of item vectors to a state that is compared with every item.

A new backbone is one file here, one line in this registry and one section of `params.yaml`; the contract tests pick it up.
"""

from common.registry import Registry

BACKBONES = Registry(
    "backbone",
    "models.backbones",
    {
        "sasrec": "SASRec",
        "bert4rec": "BERT4Rec",
        "hstu": "HSTU",
    },
)
