"""Registered names."""

from pathlib import Path
from typing import Any

import pytest

from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.losses import LOSSES
from pipeline.data import SOURCES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("registry", [ADAPTERS, BACKBONES, LOSSES, SOURCES], ids=["adapters", "backbones", "losses", "sources"])
def test_a_registered_name_is_a_file_that_defines_its_class(registry: Any) -> None:
    """dvc.yaml depends on models/adapters/${adapter}.py, data/dvc.yaml on pipeline/data/sources/${item.kind}.py."""
    for name in registry:
        assert (ROOT / registry.file(name)).is_file()
        assert registry.load(name).__module__ == registry.file(name).removesuffix(".py").replace("/", ".")
