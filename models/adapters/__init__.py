"""Adapters: from the spectrum of the item embeddings to the item table T (N x d) that a backbone sees.

A new adapter is one file here, one line in this registry and one section of `params.yaml`; the contract tests pick it up.
"""

ADAPTERS = {
    "base": "models.adapters.base:Base",
    "morec": "models.adapters.morec:MoRec",
    "unisrec": "models.adapters.unisrec:UniSRec",
    "llm_esr": "models.adapters.llm_esr:LLMESR",
    "rlmrec": "models.adapters.rlmrec:RLMRec",
    "whitenrec": "models.adapters.whitenrec:WhitenRec",
    "llminit": "models.adapters.llminit:LLMInit",
    "alphafuse": "models.adapters.alphafuse:AlphaFuse",
    "spectran": "models.adapters.spectran:SpecTran",
}
