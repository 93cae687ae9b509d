"""Backbones: each turns a sequence of item vectors into a state, which is compared with every item.

To add a backbone, add a file here, a line in this registry and a section in `params.yaml`; the contract tests then include it.
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
