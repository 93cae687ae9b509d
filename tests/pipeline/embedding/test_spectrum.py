"""The spectrum, compared with numpy's SVD in float64 and with scikit-learn."""

import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA, TruncatedSVD

from common.errors import UserError
from models.core.adapter import Spectrum
from pipeline.embedding import spectrum as module
from pipeline.embedding.spectrum import Decomposition, coordinates
from pipeline.training.inputs import FILES, load_spectrum
from tests.sign import sign

ROOT = Path(__file__).parents[3]


def anisotropic(n_items: int, width: int, decades: float, seed: int = 0) -> np.ndarray:
    """Rows around a common direction whose singular values fall by `decades` powers of ten, like those of language models."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(n_items, min(n_items, width))))
    right, _ = np.linalg.qr(rng.normal(size=(width, min(n_items, width))))
    sigma = 10 ** np.linspace(0, -decades, min(n_items, width)) * n_items**0.5
    result = left * sigma @ right.T + 0.3 * rng.normal(size=width)
    return (result / np.linalg.norm(result, axis=1, keepdims=True)).astype(np.float32)


CASES = {
    "tall": anisotropic(700, 48, 3),
    "steep": anisotropic(500, 40, 4.5),
    "wide": anisotropic(30, 64, 2),
    "square": anisotropic(50, 50, 2),
    "blocks": anisotropic(9000, 12, 1),
    "panels": anisotropic(1300, 600, 3),
}


@pytest.fixture(params=CASES)
def embeddings(request: pytest.FixtureRequest) -> np.ndarray:
    return CASES[request.param]


def measure(embeddings: np.ndarray, rank_rtol: float | None = None) -> tuple[Decomposition, list[Spectrum]]:
    """Return the result of `decompose`, and the plain and the centred spectrum that it wrote."""
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name, "embeddings.npy"), embeddings)
        result = module.decompose(Path(name, "embeddings.npy"), Path(name, "spectrum"), rank_rtol)
        sign(Path(name, "spectrum"))
        read = load_spectrum(Path(name, "spectrum"))
        parts = [[getattr(side, field).clone() for field in FILES] for side in (read, read.centred)]
    return result, [Spectrum(*part) for part in parts]


def decompose(embeddings: np.ndarray, rank_rtol: float | None = None) -> list[Spectrum]:
    return measure(embeddings, rank_rtol)[1]


def whole(spectrum: Spectrum) -> np.ndarray:
    return (spectrum.U.double() * spectrum.sigma.double() @ spectrum.V.double().T + spectrum.mean.double()).numpy()


@pytest.mark.parametrize("centred", [False, True])
def test_singular_values_are_numpys(embeddings: np.ndarray, centred: bool) -> None:
    matrix = embeddings.astype(np.float64)
    expected = np.linalg.svd(matrix - centred * matrix.mean(0), compute_uv=False)
    found = decompose(embeddings)[centred].sigma.numpy()
    relevant = expected > 1e-4 * expected[0]
    assert relevant.sum() <= len(found) <= min(embeddings.shape)
    np.testing.assert_allclose(found[: relevant.sum()], expected[relevant], rtol=1e-6)
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("leading", [1, 5, 12])
def test_leading_subspaces_are_numpys(embeddings: np.ndarray, centred: bool, leading: int) -> None:
    matrix = embeddings.astype(np.float64)
    u, _, vt = np.linalg.svd(matrix - centred * matrix.mean(0), full_matrices=False)
    found = decompose(embeddings)[centred]
    for actual, reference in ((found.U, u), (found.V, vt.T)):
        cosines = np.linalg.svd(actual[:, :leading].double().numpy().T @ reference[:, :leading], compute_uv=False)
        np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_factors_are_orthonormal_and_give_the_embeddings_back(embeddings: np.ndarray) -> None:
    for result in decompose(embeddings):
        for factor in (result.U, result.V):
            gram = factor.double().T @ factor.double()
            np.testing.assert_allclose(gram.numpy(), np.eye(len(gram)), atol=2e-6)
        assert np.linalg.norm(whole(result) - embeddings) / np.linalg.norm(embeddings) < 1e-6
        np.testing.assert_allclose(result.embeddings().numpy(), whole(result), atol=1e-6)


@pytest.mark.parametrize("name", ["tall", "wide", "steep", "panels"])
def test_principal_components_are_scikit_learns(name: str) -> None:
    embeddings = CASES[name]
    plain, centred = decompose(embeddings)
    pca = PCA(svd_solver="full").fit(embeddings.astype(np.float64))
    truncated = TruncatedSVD(5, algorithm="arpack").fit(embeddings.astype(np.float64))
    for actual, reference, leading in ((centred, pca, 10), (plain, truncated, 5)):
        np.testing.assert_allclose(actual.sigma[:leading], reference.singular_values_[:leading], rtol=1e-6)
        cosines = (actual.V[:, :leading].double().numpy().T * reference.components_[:leading]).sum(1)
        np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)
    items = pca.transform(embeddings.astype(np.float64))[:, :10] / pca.singular_values_[:10]
    np.testing.assert_allclose(np.abs(centred.U[:, :10].numpy()), np.abs(items), atol=2e-6)


@pytest.mark.parametrize("name", ["tall", "wide", "blocks"])
@pytest.mark.parametrize("share", [None, 0.1])
def test_what_it_says_of_its_quality_is_what_can_be_measured(name: str, share: float | None) -> None:
    """Norms that are estimated by random vectors are accurate to some ten per cent."""
    result, spectra = measure(CASES[name], share)
    for quality, spectrum in zip((result.plain, result.centred), spectra, strict=True):
        U = spectrum.U.double()
        assert quality.rank == spectrum.rank
        missed = np.linalg.norm(whole(spectrum) - CASES[name]) / np.linalg.norm(CASES[name] - spectrum.mean.numpy())
        assert quality.residual == pytest.approx(missed, rel=0.5)
        assert quality.orthogonality == pytest.approx(float((U.T @ U - torch.eye(quality.rank)).norm()), rel=0.5)
        assert quality.orthogonality < 1e-6


def test_a_wrong_decomposition_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._from_gram

    def swapped(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma, V = right(gram)
        return sigma, V.roll(1, 1)

    def skewed(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma, V = right(gram)
        V[:, 3] += 1e-3 * V[:, 2]
        return sigma, V

    for wrong in (swapped, skewed):
        monkeypatch.setattr(module, "_from_gram", wrong)
        result, _ = measure(CASES["tall"])
        assert result.plain.orthogonality > 5e-4
    monkeypatch.setattr(module, "_from_gram", lambda gram: (right(gram)[0], right(gram)[1] * 1.001))
    assert measure(CASES["tall"])[0].plain.residual > 5e-4


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", CASES["panels"])
    result = [module.decompose(tmp_path / "embeddings.npy", tmp_path / name) for name in "ab"]
    assert result[0].measured() == result[1].measured()
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.npy"))
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_centred_spectrum_has_the_mean_and_the_plain_one_zero(embeddings: np.ndarray) -> None:
    plain, centred = decompose(embeddings)
    assert not plain.mean.any()
    np.testing.assert_allclose(centred.mean.numpy(), embeddings.astype(np.float64).mean(0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(centred.U.double().sum(0).numpy(), 0, atol=1e-4)


def test_centring_costs_one_of_the_ranks_of_a_wide_matrix() -> None:
    plain, centred = decompose(CASES["wide"])
    assert (plain.rank, centred.rank) == (30, 29)


def test_the_gram_matrix_and_the_direct_path_agree() -> None:
    square = CASES["square"]
    gram = decompose(square)[0]
    direct = decompose(np.hstack([square, np.zeros((50, 1), dtype=np.float32)]))[0]
    np.testing.assert_allclose(gram.sigma, direct.sigma, rtol=1e-6)
    np.testing.assert_allclose(gram.U.numpy(), direct.U.numpy(), atol=1e-5)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = decompose(CASES["tall"])[1]
    monkeypatch.setattr(module, "BLOCK", 97)
    in_blocks = decompose(CASES["tall"])[1]
    np.testing.assert_allclose(at_once.sigma, in_blocks.sigma, rtol=1e-6)
    np.testing.assert_allclose(at_once.U.numpy(), in_blocks.U.numpy(), atol=1e-5)


def test_the_largest_entry_of_every_direction_is_positive(embeddings: np.ndarray) -> None:
    for result in (*decompose(embeddings), *decompose(-embeddings)):
        V = result.V.numpy()
        assert (V[np.abs(V).argmax(0), np.arange(V.shape[1])] > 0).all()


def test_flipping_the_embeddings_flips_the_items_and_not_the_directions() -> None:
    actual, flipped = decompose(CASES["tall"])[0], decompose(-CASES["tall"])[0]
    np.testing.assert_allclose(flipped.V.numpy(), actual.V.numpy(), atol=1e-6)
    np.testing.assert_allclose(flipped.U.numpy(), -actual.U.numpy(), atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
def test_the_rank_of_a_product_is_its_inner_dimension(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    product = (rng.normal(size=(shape[0], 7)) @ rng.normal(size=(7, shape[1]))).astype(np.float32)
    plain, centred = decompose(product)
    assert (plain.rank, centred.rank) == (7, 7)
    assert plain.U.shape == (shape[0], 7)
    assert plain.V.shape == (shape[1], 7)


def test_duplicate_rows_stay_duplicates_and_lower_the_rank() -> None:
    distinct = np.random.default_rng(0).normal(size=(10, 24)).astype(np.float32)
    repeated = np.repeat(distinct, 6, axis=0)
    plain, centred = decompose(repeated)
    assert (plain.rank, centred.rank) == (10, 9)
    for spectrum in (plain, centred):
        assert torch.equal(spectrum.U[0], spectrum.U[5])


def test_the_rank_can_be_cut_by_a_share_of_the_first_value() -> None:
    expected = np.linalg.svd(CASES["tall"].astype(np.float64), compute_uv=False)
    for share in (0.5, 0.1, 0.01):
        assert decompose(CASES["tall"], share)[0].rank == (expected > share * expected[0]).sum()


@pytest.mark.parametrize("shape", [(1, 8), (1, 1), (20, 8), (5, 8), (500, 64)])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_rows_that_are_all_equal_are_one_line(shape: tuple[int, int], value: float) -> None:
    """The plain spectrum has one direction, and the centred one consists of rounding errors."""
    rows = np.tile((value * np.linspace(1, 2, shape[1])).astype(np.float32), (shape[0], 1))
    with pytest.raises(UserError, match="the embeddings are all equal") as caught:
        decompose(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "row"), [((5000, 3), 4321), ((5000, 3), 10), ((3, 8), 2), ((5, 2), 0)])
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
    spectrum = decompose(given)[0]
    assert spectrum.rank > 40
    np.testing.assert_allclose(spectrum.sigma, expected[: spectrum.rank], rtol=1e-6)
    assert spectrum.U.dtype == spectrum.sigma.dtype == spectrum.V.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "within"), [(np.float16, (3e-5, 1e-3)), (np.float32, (1e-6, 1e-6))])
@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (3000, 200)])
def test_directions_that_rounding_makes_are_counted_and_dropped(
    dtype: type, within: tuple[float, float], shape: tuple[int, int]
) -> None:
    """A product of inner dimension 7 has rank 7; rounded to half precision, it appears to have full rank."""
    rng = np.random.default_rng(0)
    product = (rng.normal(size=(shape[0], 7)) @ rng.normal(size=(7, shape[1]))).astype(dtype)
    result, _ = measure(product)
    assert (result.plain.rank, result.plain.below_precision) == (7, min(shape) - 7)
    assert within[0] <= result.precision <= within[1]
    # Not far above what rounding does: a direction ten times as large is kept.
    eighth = rng.normal(size=(shape[0], 1)) @ rng.normal(size=(1, shape[1]))
    eighth *= 10 * result.precision * np.linalg.norm(product.astype(np.float64), 2) / np.linalg.norm(eighth)
    assert measure((product + eighth).astype(dtype))[0].plain.rank == 8


def test_a_steep_spectrum_stays_orthogonal_down_to_the_precision() -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 120)))[0] for n in (400, 120))
    sigma = np.geomspace(1, 1e-8, 120)
    result, (plain, _) = measure(left * sigma @ right.T)
    assert result.plain.rank == (sigma > 1e-6).sum()
    assert result.plain.orthogonality < 1e-4
    np.testing.assert_allclose(plain.sigma, sigma[: plain.rank], rtol=2e-5)
    relevant = sigma > 1e-5
    np.testing.assert_allclose(plain.sigma[: relevant.sum()], sigma[relevant], rtol=1e-6)
    U = plain.U[:, : relevant.sum()].double()
    assert float((U.T @ U - torch.eye(U.shape[1])).norm()) < 2e-6


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["tall", "wide", "panels"])
def test_new_items_get_the_coordinates_that_they_would_have(name: str, centred: bool) -> None:
    kept, new = CASES[name][:-5], CASES[name][-5:]
    spectrum = decompose(kept)[centred]
    _, sigma, vt = np.linalg.svd(kept.astype(np.float64) - centred * kept.astype(np.float64).mean(0), full_matrices=False)
    vt *= np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)])[:, None]
    expected = (new - centred * kept.astype(np.float64).mean(0)) @ vt.T / sigma
    found = coordinates(spectrum, torch.from_numpy(new))
    assert (found.shape, found.dtype) == ((5, spectrum.rank), torch.float32)
    np.testing.assert_allclose(found, expected[:, : spectrum.rank], atol=2e-5)
    np.testing.assert_allclose(coordinates(spectrum, torch.from_numpy(kept)), spectrum.U, atol=2e-5)


def test_new_items_from_another_encoder_are_refused() -> None:
    with pytest.raises(UserError, match="embeddings have 7 columns, the spectrum's 48"):
        coordinates(decompose(CASES["tall"])[0], torch.ones(2, 7))


def test_the_sidecar_has_three_digits_of_every_measure_and_whole_ranks() -> None:
    result, _ = measure(CASES["steep"])
    found = result.measured()
    assert list(found) == ["precision", "plain", "centred"]
    assert found["precision"] == pytest.approx(result.precision, rel=5e-3) == float(f"{result.precision:.3g}")
    for name, quality in (("plain", result.plain), ("centred", result.centred)):
        assert (found[name]["rank"], found[name]["below_precision"]) == (quality.rank, quality.below_precision)
        assert type(found[name]["rank"]) is int
        for measured in ("residual", "orthogonality"):
            assert found[name][measured] == float(f"{getattr(quality, measured):.3g}")


def test_seconds_are_those_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    assert measure(CASES["tall"])[0].seconds == {"gram": 2.0, "factors": 4.0, "coordinates": 8.0}


@pytest.mark.parametrize(
    "unusable", [np.ones(5), np.ones((2, 3, 4)), np.ones((0, 4)), np.ones((4, 0)), np.ones((3, 4), dtype=int)]
)
def test_what_is_no_matrix_of_floats_is_one_line_with_its_type_and_shape(unusable: np.ndarray) -> None:
    with pytest.raises(UserError) as caught:
        decompose(unusable)
    says = f"embeddings.npy has type {unusable.dtype} and shape {unusable.shape}, expected a matrix of floats; embed again"
    assert str(caught.value).endswith(says)


class Thread:
    """What a process does with the others, for one of two threads."""

    count, device = 2, torch.device("cpu")
    barrier, values = threading.Barrier(2, timeout=60), [None, None]

    def __init__(self, rank: int) -> None:
        self.rank, self.first = rank, rank == 0

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found

    def add(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            tensor.copy_(sum(self.gather(tensor.clone())))

    def copy(self, tensor: torch.Tensor, owner: int) -> None:
        tensor.copy_(self.gather(tensor.clone())[owner])


@pytest.mark.parametrize("name", ["blocks", "wide"])
def test_two_that_share_the_rows_write_what_one_writes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real processes: tests/stages/test_stages.py."""
    lock, open_array = threading.Lock(), module.open_array

    def one_at_a_time(*args: Any) -> np.memmap:
        """`np.load` parses a literal, which fails by chance in threads (CPython issue 106905); the product has processes here."""
        with lock:
            return open_array(*args)

    monkeypatch.setattr(module, "open_array", one_at_a_time)
    np.save(tmp_path / "embeddings.npy", CASES[name])
    one = module.decompose(tmp_path / "embeddings.npy", tmp_path / "one")
    with ThreadPoolExecutor(2) as pool:
        both = list(
            pool.map(lambda rank: module.decompose(tmp_path / "embeddings.npy", tmp_path / "two", None, Thread(rank)), (0, 1))
        )
    for two in both:
        assert (two.plain.rank, two.centred.rank) == (one.plain.rank, one.centred.rank)
        for side in ("plain", "centred"):
            assert getattr(two, side).residual == pytest.approx(getattr(one, side).residual, rel=0.1)
    for file in (tmp_path / "one").rglob("*.npy"):
        np.testing.assert_allclose(
            np.load(tmp_path / "two" / file.relative_to(tmp_path / "one")), np.load(file), rtol=1e-4, atol=1e-6
        )


def test_quality_is_measured_with_random_signs(tmp_path: Path) -> None:
    """Other numbers would make the estimate biased."""
    side = module._Side(
        tmp_path, torch.tensor([2.0, 1.0]).double(), torch.eye(3).double()[:, :2], torch.zeros(3).double(), 9, 0, 0
    )
    for probes, rows in ((side.probes, 3), (side.u_probes, 2)):
        assert probes.shape == (rows, module.PROBES)
        assert set(probes.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_memory_does_not_grow_with_the_items(tmp_path: Path, dtype: type) -> None:
    """300,000 x 128: both U have 300 MB together, and E in float32 half of that."""
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.embedding.spectrum import decompose
peaks = []
for n in (2_000, 300_000):
    file = np.lib.format.open_memmap("e.npy", mode="w+", dtype=sys.argv[1], shape=(n, 128))
    file.flush()
    rng = np.random.default_rng(0)
    with open("e.npy", "r+b") as stream:
        stream.seek(file.offset)
        del file
        for _ in range(n // 2_000):
            stream.write(rng.normal(size=(2_000, 128)).astype(sys.argv[1]).tobytes())
    decompose(Path("e.npy"), Path(f"out{n}"))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, np.dtype(dtype).name],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 20_000  # KiB
