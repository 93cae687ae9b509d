"""Adapters: each builds the item table T (N x d), which a backbone reads, from the spectrum of the item embeddings.

To add an adapter, add a file here, a line in this registry and a section in `params.yaml`; the contract tests then include it.
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
        "spec_mlp": "SpecMLP (ours)",
    },
)
