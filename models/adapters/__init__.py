"""Adapters: from the spectrum of the item embeddings to the item table T (N x d) that a backbone sees.

A new adapter is one file here, one line in this registry and one section of `params.yaml`; the contract tests pick it up.
"""

from common.registry import Registry

ADAPTERS = Registry(
    "adapter",
    "models.adapters",
    {
        "base": "Base (ID only)",
        "morec": "MoRec",
        "unisrec": "UniSRec",
        "llm_esr": "LLM-ESR",
        "rlmrec": "RLMRec",
        "whitenrec": "WhitenRec",
        "llminit": "LLMInit",
        "alphafuse": "AlphaFuse",
        "spectran": "SpecTran",
    },
)
