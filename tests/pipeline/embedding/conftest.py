"""Texts and small models. No test needs a network, and shards lie in a scratch of each test's own."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

WORDS = ["red tent", "blue", "green green kettle tent red", "kettle unheard"]
VOCABULARY = ("red", "green", "blue", "tent", "kettle", "unheard")


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(VOCABULARY, size=rng.integers(1, 30))) for _ in range(count)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRAN_SCRATCH", str(tmp_path / "scratch"))


def small(kind: str, folder: Path, llama: Path, **more: Any) -> Any:
    """Save a small model of a class, with the tokenizer of the tiny LLaMA."""
    import transformers

    for file in llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    config = getattr(transformers, f"{kind.removesuffix('ForMaskedLM').removesuffix('Model')}Config")(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, **more
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    return model
