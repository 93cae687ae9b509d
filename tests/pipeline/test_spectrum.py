"""The spectrum against numpy's SVD in float64."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from models.adapters.adapter import Spectrum
from models.errors import UserError
from pipeline import spectrum as module
from pipeline.spectrum import decompose, load_spectrum, save_spectrum


def anisotropic(n_items: int, width: int, decades: float, seed: int = 0) -> np.ndarray:
    """Rows around a common direction, singular values that fall by `decades` powers of ten, as language models give."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(n_items, min(n_items, width))))
    right, _ = np.linalg.qr(rng.normal(size=(width, min(n_items, width))))
    sigma = 10 ** np.linspace(0, -decades, min(n_items, width)) * n_items**0.5
    made = left * sigma @ right.T + 0.3 * rng.normal(size=width)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


CASES = {
    "tall": anisotropic(700, 48, 3),
    "steep": anisotropic(500, 40, 4.5),
    "wide": anisotropic(30, 64, 2),
    "square": anisotropic(50, 50, 2),
    "blocks": anisotropic(9000, 12, 1),
}


@pytest.fixture(params=CASES)
def embeddings(request: pytest.FixtureRequest) -> np.ndarray:
    return CASES[request.param]


def whole(spectrum: Spectrum) -> np.ndarray:
    return (spectrum.U.double() * spectrum.sigma.double() @ spectrum.V.double().T + spectrum.mean.double()).numpy()


@pytest.mark.parametrize("centred", [False, True])
def test_singular_values_are_numpys(embeddings: np.ndarray, centred: bool) -> None:
    matrix = embeddings.astype(np.float64)
    expected = np.linalg.svd(matrix - centred * matrix.mean(0), compute_uv=False)
    found = decompose(embeddings)[centred].spectrum.sigma.numpy()
    relevant = expected > 1e-4 * expected[0]
    assert relevant.sum() <= len(found) <= min(embeddings.shape)
    np.testing.assert_allclose(found[: relevant.sum()], expected[relevant], rtol=1e-6)
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("leading", [1, 5, 12])
def test_leading_subspaces_are_numpys(embeddings: np.ndarray, centred: bool, leading: int) -> None:
    matrix = embeddings.astype(np.float64)
    u, _, vt = np.linalg.svd(matrix - centred * matrix.mean(0), full_matrices=False)
    found = decompose(embeddings)[centred].spectrum
    for mine, theirs in ((found.U, u), (found.V, vt.T)):
        cosines = np.linalg.svd(mine[:, :leading].double().numpy().T @ theirs[:, :leading], compute_uv=False)
        np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_factors_are_orthonormal_and_give_the_embeddings_back(embeddings: np.ndarray) -> None:
    for made in decompose(embeddings, rank_rtol=1e-5):
        for factor in (made.spectrum.U, made.spectrum.V):
            gram = factor.double().T @ factor.double()
            np.testing.assert_allclose(gram.numpy(), np.eye(len(gram)), atol=2e-6)
        error = np.linalg.norm(whole(made.spectrum) - embeddings) / np.linalg.norm(embeddings)
        assert error < 2e-5 if made.spectrum.rank < min(embeddings.shape) else error < 1e-6
        np.testing.assert_allclose(made.spectrum.embeddings().numpy(), whole(made.spectrum), atol=1e-6)


@pytest.mark.parametrize("name", ["tall", "wide", "square", "blocks"])
def test_at_full_rank_the_reconstruction_is_exact_to_single_precision(name: str) -> None:
    embeddings = CASES[name]
    plain, centred = decompose(embeddings)
    assert plain.spectrum.rank == min(embeddings.shape)
    for made in (plain, centred):
        assert np.linalg.norm(whole(made.spectrum) - embeddings) / np.linalg.norm(embeddings) < 1e-6


def test_what_it_says_of_its_quality_is_what_can_be_measured() -> None:
    made = decompose(CASES["tall"], rank_rtol=0.01)[0]
    measured = np.linalg.norm(whole(made.spectrum) - CASES["tall"]) / np.linalg.norm(CASES["tall"])
    assert made.residual == pytest.approx(measured, rel=1e-3)
    assert 0 <= made.orthogonality < 1e-9


def test_the_centred_spectrum_has_the_mean_and_the_plain_one_zero(embeddings: np.ndarray) -> None:
    plain, centred = (made.spectrum for made in decompose(embeddings))
    assert not plain.mean.any()
    np.testing.assert_allclose(centred.mean.numpy(), embeddings.astype(np.float64).mean(0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(centred.U.double().sum(0).numpy(), 0, atol=1e-4)


def test_centring_costs_one_of_the_ranks_of_a_wide_matrix() -> None:
    plain, centred = decompose(CASES["wide"])
    assert (plain.spectrum.rank, centred.spectrum.rank) == (30, 29)


def test_the_gram_matrix_and_the_direct_path_agree() -> None:
    square = CASES["square"]
    gram = decompose(square)[0].spectrum
    direct = decompose(np.hstack([square, np.zeros((50, 1), dtype=np.float32)]))[0].spectrum
    np.testing.assert_allclose(gram.sigma, direct.sigma, rtol=1e-6)
    np.testing.assert_allclose(gram.U.numpy(), direct.U.numpy(), atol=1e-5)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = decompose(CASES["tall"])[1].spectrum
    monkeypatch.setattr(module, "BLOCK", 97)
    in_blocks = decompose(CASES["tall"])[1].spectrum
    np.testing.assert_allclose(at_once.sigma, in_blocks.sigma, rtol=1e-6)
    np.testing.assert_allclose(at_once.U.numpy(), in_blocks.U.numpy(), atol=1e-5)


def test_the_largest_entry_of_every_direction_is_positive(embeddings: np.ndarray) -> None:
    for made in (*decompose(embeddings), *decompose(-embeddings)):
        V = made.spectrum.V.numpy()
        assert (V[np.abs(V).argmax(0), np.arange(V.shape[1])] > 0).all()


def test_flipping_the_embeddings_flips_the_items_and_not_the_directions() -> None:
    mine, flipped = decompose(CASES["tall"])[0].spectrum, decompose(-CASES["tall"])[0].spectrum
    np.testing.assert_allclose(flipped.V.numpy(), mine.V.numpy(), atol=1e-6)
    np.testing.assert_allclose(flipped.U.numpy(), -mine.U.numpy(), atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
def test_the_rank_of_a_product_is_its_inner_dimension(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    product = (rng.normal(size=(shape[0], 7)) @ rng.normal(size=(7, shape[1]))).astype(np.float32)
    plain, centred = decompose(product)
    assert (plain.spectrum.rank, centred.spectrum.rank) == (7, 7)
    assert plain.spectrum.U.shape == (shape[0], 7)
    assert plain.spectrum.V.shape == (shape[1], 7)


def test_duplicate_rows_stay_duplicates_and_lower_the_rank() -> None:
    distinct = np.random.default_rng(0).normal(size=(10, 24)).astype(np.float32)
    repeated = np.repeat(distinct, 6, axis=0)
    plain, centred = (made.spectrum for made in decompose(repeated))
    assert (plain.rank, centred.rank) == (10, 9)
    for spectrum in (plain, centred):
        assert torch.equal(spectrum.U[0], spectrum.U[5])


def test_the_rank_can_be_cut_by_a_share_of_the_first_value() -> None:
    expected = np.linalg.svd(CASES["tall"].astype(np.float64), compute_uv=False)
    for share in (0.5, 0.1, 0.01):
        assert decompose(CASES["tall"], share)[0].spectrum.rank == (expected > share * expected[0]).sum()


@pytest.mark.parametrize("shape", [(1, 8), (1, 1), (20, 8), (5, 8), (500, 64)])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_rows_that_are_all_equal_are_one_line(shape: tuple[int, int], value: float) -> None:
    """Their plain spectrum is one direction, their centred one is nothing but rounding."""
    rows = np.tile((value * np.linspace(1, 2, shape[1])).astype(np.float32), (shape[0], 1))
    with pytest.raises(UserError, match="the embeddings are all equal") as caught:
        decompose(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "row"), [((5000, 3), 4321), ((3, 8), 2), ((5, 2), 0)])
def test_a_row_that_is_not_finite_is_named(shape: tuple[int, int], row: int, bad: float) -> None:
    embeddings = np.ones(shape, dtype=np.float32)
    embeddings[row:, -1] = bad
    with pytest.raises(UserError, match=f"^row {row} of the embeddings holds NaN or infinity") as caught:
        decompose(embeddings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_are_read_as_they_are(dtype: type) -> None:
    given = CASES["tall"].astype(dtype)
    expected = np.linalg.svd(given.astype(np.float64), compute_uv=False)
    spectrum = decompose(given)[0].spectrum
    np.testing.assert_allclose(spectrum.sigma, expected[: spectrum.rank], rtol=1e-5)
    assert spectrum.U.dtype == spectrum.sigma.dtype == spectrum.V.dtype == torch.float32


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    plain, centred = decompose(CASES["wide"])
    save_spectrum(plain.spectrum, tmp_path / "spectrum")
    save_spectrum(centred.spectrum, tmp_path / "spectrum/centred")
    return tmp_path / "spectrum"


def test_what_is_saved_is_loaded(saved: Path) -> None:
    made = [decomposition.spectrum for decomposition in decompose(CASES["wide"])]
    read = load_spectrum(saved)
    for mine, theirs in ((made[0], read), (made[1], read.centred)):
        for name in ("U", "sigma", "V", "mean"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name))


def test_writing_to_a_loaded_spectrum_leaves_its_files_alone(saved: Path) -> None:
    """DVC's cache may be the same bytes on disk."""

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
