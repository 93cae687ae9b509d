"""The package of the tiny trained project, made once."""

import contextlib
import shutil
from pathlib import Path

import pytest

from pipeline.serving.package import PACKAGE, write_package
from pipeline.serving.recommender import Recommender


@pytest.fixture(scope="session")
def packaged(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, moved out of the project."""
    folder = tmp_path_factory.mktemp("packaged") / "package"
    with contextlib.chdir(trained_project):
        write_package(Recommender.load())
        shutil.move(PACKAGE, folder)
        PACKAGE.parent.rmdir()
    return folder


@pytest.fixture(scope="session")
def checkpoint(trained_project: Path) -> Recommender:
    with contextlib.chdir(trained_project):
        return Recommender.load()
