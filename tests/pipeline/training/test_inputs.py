"""A spectrum is read as it was written, or refused in one line."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from pipeline.embedding import spectrum as module
from pipeline.runs import Run
from pipeline.training.inputs import load_spectrum
from tests.sign import sign


def test_the_spectrum_of_another_dataset_is_refused_in_the_place_of_this_ones(selected: Callable[..., Run]) -> None:
    run = selected()
    run.spectrum.rename("data/spectrum/tiny/other")
    shutil.copytree("data/spectrum/tiny/other", run.spectrum)
    load_spectrum(run.spectrum)
    shutil.move(run.spectrum, "data/spectrum/other")
    with pytest.raises(UserError, match=r"data/spectrum/other/sidecar.json is damaged or belongs elsewhere"):
        load_spectrum(Path("data/spectrum/other"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    np.save(tmp_path / "embeddings.npy", np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32))
    module.decompose(tmp_path / "embeddings.npy", tmp_path / "spectrum")
    sign(tmp_path / "spectrum")
    return tmp_path / "spectrum"


def test_writing_to_a_loaded_spectrum_leaves_its_files_alone(saved: Path) -> None:
    """DVC's cache may share these bytes on disk."""

    def checksums() -> dict[str, str]:
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in saved.rglob("*.npy")}

    before = checksums()
    read = load_spectrum(saved)
    for tensor in (read.U, read.sigma, read.centred.V):
        tensor.zero_()
    assert checksums() == before
    assert len(before) == 8


@pytest.mark.parametrize("name", ["U", "sigma", "V", "mean"])
@pytest.mark.parametrize("content", [None, b"", b"not numpy", b"\x93NUMPY\x01\x00", "cut"])
def test_a_file_that_is_missing_or_damaged_is_one_line_that_names_it(saved: Path, name: str, content: bytes | str | None) -> None:
    file = saved / f"{name}.npy"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3] if isinstance(content, str) else content)
    with pytest.raises(UserError, match=f"{name}.npy is {'missing' if content is None else 'damaged'}") as caught:
        load_spectrum(saved)
    assert "\n" not in str(caught.value)


def test_the_centred_twin_is_only_read_when_asked_for(saved: Path) -> None:
    (saved / "centred/U.npy").unlink()
    read = load_spectrum(saved)
    with pytest.raises(UserError, match=r"centred/U.npy is missing"):
        _ = read.centred
