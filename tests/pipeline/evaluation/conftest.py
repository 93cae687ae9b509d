"""The recommenders that the models' tests build."""

from tests.models.conftest import embeddings, make, spectrum

__all__ = ["embeddings", "make", "spectrum"]
