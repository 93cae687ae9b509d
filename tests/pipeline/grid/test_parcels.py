"""Parcels from the driver to a node and back, with a list as the object store; and errors before a cluster starts."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from pipeline.grid import cluster
from pipeline.grid.cluster import Cluster
from pipeline.grid.node import fetch, install
from pipeline.grid.parcels import checksum
from pipeline.params import Resources
from tests.pipeline.grid.conftest import content, sent

pytestmark = pytest.mark.usefixtures("small_pieces")


ROOT = Path(__file__).parents[3]


def test_a_spectrum_arrives_in_pieces_as_it_was(tmp_path: Path) -> None:
    spectrum = Path("data/spectrum/tiny/random")
    parcel = sent(spectrum)
    assert len(parcel.pieces) > 2
    assert sum(piece.nbytes for piece in parcel.pieces) == parcel.bytes
    assert fetch(parcel, tmp_path / "inputs", np.asarray)
    install(parcel, tmp_path / "inputs", tmp_path / "task")
    assert content(tmp_path / "task/data/spectrum/tiny/random") == content(spectrum)


def test_files_that_dvc_links_to_its_cache_arrive_as_files(tmp_path: Path) -> None:
    (tmp_path / "cached").write_bytes(b"numbers")
    Path("data/sequences/linked").mkdir()
    Path("data/sequences/linked/file").symlink_to(tmp_path / "cached")
    fetch(parcel := sent(Path("data/sequences/linked")), tmp_path / "inputs", np.asarray)
    (tmp_path / "cached").unlink()
    assert (tmp_path / "inputs" / parcel.checksum / "linked/file").read_bytes() == b"numbers"


def test_a_checksum_changes_with_the_content_and_the_path() -> None:
    here, there = Path("models"), Path("pipeline")
    here.mkdir()
    (here / "a.py").write_text("1")
    first = checksum(here, here)
    (here / "__pycache__").mkdir()
    (here / "__pycache__/a.pyc").write_text("made by importing")
    assert checksum(here, here) == first
    assert checksum(here, there) != first
    (here / "a.py").write_text("2")
    assert checksum(here, here) != first
    spectrum = Path("data/spectrum/tiny/random")
    first = checksum(spectrum, spectrum)
    (spectrum / "sidecar.json").write_text("{}")
    assert checksum(spectrum, spectrum) != first


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install '\.\[ray\]'"):
        Cluster(Resources())
