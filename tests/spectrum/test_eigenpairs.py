"""Both ends of known spectra, from few products, with nothing missing."""

import re

import numpy as np
import pytest
import torch
from support.matrices import SPECTRA, Laplacian, Stored, like_a_hessian, with_spectrum
from torch import nn

import pipeline
from pipeline.errors import PipelineError
from pipeline.spectrum import DenseMatrix, eigenpairs, pair_search, rows
from pipeline.spectrum.lanczos import Lanczos


def ends(eigenvalues, top, bottom):
    """The largest and the smallest, descending."""
    top = min(top, len(eigenvalues))
    bottom = min(bottom, len(eigenvalues) - top)
    return np.concatenate([eigenvalues[::-1][:top], eigenvalues[:bottom][::-1]])


def assert_pairs(found, matrix, expected, tolerance):
    largest = np.abs(expected).max()
    bound = 1.01 * tolerance * max(largest, np.abs(found.values).max()) + 1e-13 * largest
    np.testing.assert_allclose(found.values, expected, atol=bound)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(len(expected)), atol=1e-12)
    residuals = np.linalg.norm(matrix.matvec(found.vectors) - found.vectors * found.values, axis=0)
    assert (residuals <= 2 * bound).all()
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-12 * largest + 1e-300)
    assert found.complete


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_a_known_spectrum(name, block_size):
    eigenvalues = SPECTRA[name]
    matrix = Stored(with_spectrum(eigenvalues))
    found = eigenpairs(matrix, top=10, bottom=3, tolerance=1e-8, block_size=block_size)
    assert_pairs(found, matrix, ends(eigenvalues, 10, 3), 1e-8)


HARD = {
    "cluster": (np.concatenate([np.linspace(-0.1, 0.1, 190), 1 + 1e-9 * np.arange(10)]), 5, 1e-12, 1e-10),
    "multiplicity-12": (np.concatenate([np.linspace(-0.1, 0.1, 188), [1.0] * 12]), 15, 1e-8, 1e-8),
    "rank-8": (np.concatenate([[-2, -1], np.zeros(192), np.arange(1, 7)]), 20, 1e-8, 1e-7),
}


@pytest.mark.parametrize("block_size", [1, 3])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", HARD)
def test_no_set_is_wrong_whatever_the_first_block(name, seed, block_size):
    eigenvalues, top, tolerance, allowed = HARD[name]
    matrix = with_spectrum(np.sort(eigenvalues), seed)
    found = eigenpairs(matrix, top, 1, tolerance, block_size=block_size, seed=seed)
    np.testing.assert_allclose(found.values, ends(np.sort(eigenvalues), top, 1), atol=allowed)


@pytest.mark.parametrize(
    ("seed", "tolerance"), [(14, 1e-4), (16, 1e-4), (21, 1e-5), (28, 1e-5), (38, 1e-4), (55, 1e-5)]
)
def test_a_pair_beside_one_that_has_converged_is_seen_and_the_search_ends(seed, tolerance):
    """A hidden eigenvector lies in what comes next in the basis, where the search has to look too."""
    eigenvalues = like_a_hessian(300, seed)
    found = eigenpairs(with_spectrum(eigenvalues, seed), 2, 2, tolerance, block_size=1)
    np.testing.assert_allclose(found.values, ends(eigenvalues, 2, 2), atol=2 * tolerance * 10)
    assert found.num_products < 100


@pytest.mark.parametrize("name", ["hessian", "wigner", "multiple", "cluster"])
def test_a_search_begins_beside_pairs_that_have_converged_alone(name, monkeypatch):
    """Another vector of the basis may hold a part of a hidden eigenvector, which the space without it then does not."""
    residuals, add_random = [], Lanczos.add_random

    def spied(self, num_rows, rng):
        found = self.ritz(self.num_columns, 0)
        residuals.append(found.residuals.max() / found.largest)
        add_random(self, num_rows, rng)

    monkeypatch.setattr(Lanczos, "add_random", spied)
    eigenpairs(with_spectrum(SPECTRA[name]), 10, 2, 1e-5, block_size=1)
    assert residuals
    assert max(residuals) <= 1e-5


@pytest.mark.parametrize("block_size", [1, 3])
def test_tolerances_are_of_the_largest_eigenvalue_though_the_basis_holds_the_smallest_alone(block_size):
    eigenvalues = np.sort(np.concatenate([np.geomspace(1e-8, 1e-2, 53), np.full(7, 1.0)]))
    found = eigenpairs(with_spectrum(eigenvalues), 0, 1, 1e-6, block_size=block_size)
    np.testing.assert_allclose(found.values, eigenvalues[:1], atol=2e-6)
    assert found.num_products < 150


def test_without_the_search_beyond_sets_are_wrong(monkeypatch):
    """So that the tests above test it."""
    monkeypatch.setattr(pair_search.PairSearch, "_is_complete", lambda self, state: True)
    eigenvalues, top, tolerance, allowed = HARD["multiplicity-12"]
    found = eigenpairs(with_spectrum(np.sort(eigenvalues)), top, 1, tolerance, block_size=1)
    assert np.abs(found.values - ends(np.sort(eigenvalues), top, 1)).max() > allowed


def test_restarts_give_the_same():
    matrix = Laplacian(300)
    found = eigenpairs(matrix, 5, 5, tolerance=1e-9, block_size=3, max_columns=40)
    assert_pairs(found, matrix, ends(matrix.eigenvalues, 5, 5), 1e-9)


def test_fewer_products_than_rows_by_far():
    eigenvalues = like_a_hessian(800)
    found = eigenpairs(Stored(with_spectrum(eigenvalues)), top=10, bottom=0, block_size=2)
    assert found.num_products <= 80


def test_an_operator_and_an_array_give_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    pair = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    dense = pipeline.hessian(model, nn.CrossEntropyLoss(), *pair).numpy()
    operator = pipeline.curvature_operator(
        model,
        nn.CrossEntropyLoss(),
        [(x, y) for x, y in zip(pair[0].split(6), pair[1].split(6), strict=True)],
    )
    expected = ends(np.linalg.eigvalsh(dense), 8, 2)
    for matrix in (operator, dense):
        found = pipeline.eigenpairs(matrix, 8, 2, tolerance=1e-10)
        np.testing.assert_allclose(found.values, expected, atol=1e-9 * expected[0])


def test_products_in_single_precision_to_what_they_allow():
    eigenvalues = like_a_hessian(400)
    single = with_spectrum(eigenvalues).astype(np.float32)

    class Single(Stored):
        def matvec(self, vectors):
            return single @ vectors.astype(np.float32)

    found = eigenpairs(Single(single), top=10, tolerance=1e-5)
    np.testing.assert_allclose(found.values[:10], eigenvalues[::-1][:10], atol=1e-5 * 10)
    message = r"symmetric to \d\.\de-0\d of its largest eigenvalue only, and tolerance=1e-10 asks for more: raise it to"
    with pytest.raises(PipelineError, match=message):
        eigenpairs(Single(single), top=10, tolerance=1e-10)


def test_every_limit_of_products_comes_to_an_end():
    """With all pairs found, or with one line; never with products beyond the limit but those of a last block."""
    eigenvalues = np.concatenate([np.linspace(-0.1, 1, 295), np.linspace(10, 20, 5)])
    endings = set()
    for limit in range(4, 40):
        matrix = Bounded(with_spectrum(eigenvalues), limit + 10)
        try:
            found = eigenpairs(matrix, 3, 0, max_products=limit, block_size=1)
        except PipelineError as error:
            endings.add(re.sub(r"\d[\d.e+-]*", "N", str(error)).partition(":")[0].partition(" (")[0])
        else:
            np.testing.assert_allclose(found.values, ends(eigenvalues, 3, 0), atol=1e-4)
            endings.add("found")
    assert endings == {
        "found",
        "N of N eigenpairs have not converged in N products",
        "N eigenpairs have converged, but not the search for pairs beyond them",
    }


class Bounded(Stored):
    """A matrix that is multiplied so many times at most."""

    def __init__(self, matrix, limit):
        super().__init__(matrix)
        self.limit = limit

    def matvec(self, vectors):
        assert self.num_passes < self.limit, "a search without an end"
        return super().matvec(vectors)


def test_watch_is_told_products_and_residuals():
    told = []
    matrix = Stored(with_spectrum(like_a_hessian(400)))
    found = eigenpairs(matrix, 10, 0, block_size=2, watch=lambda *numbers: told.append(numbers))
    counts, residuals = zip(*told, strict=True)
    assert list(counts) == sorted(set(counts))
    assert counts[-1] <= found.num_products
    assert residuals[0] == np.inf
    assert min(residuals) <= 1e-6


def test_one_seed_one_result():
    matrix = with_spectrum(SPECTRA["wigner"])
    first, second = (eigenpairs(matrix, 6, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.vectors, second.vectors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": -1}, "top=-1: give a whole number of at least 0"),
        ({"top": 0, "bottom": 0}, "top=0 and bottom=0: ask for one pair at least"),
        ({"tolerance": 0}, "tolerance=0: give a number above 0 and below 1"),
        ({"max_columns": 20}, "max_columns=20: give a whole number of at least 33, or null"),
        ({"block_size": 0}, "block_size=0"),
        (
            {"max_products": 12, "tolerance": 1e-12},
            r"\d+ of 21 eigenpairs have not converged in \d+ products",
        ),
    ],
)
def test_mistakes_in_one_line(options, message):
    with pytest.raises(PipelineError, match=message):
        eigenpairs(Laplacian(500), **{"block_size": 4, **options})


def test_what_is_no_matrix_and_what_is_not_finite_is_refused():
    with pytest.raises(
        PipelineError, match="the matrix is of type str: give what curvature_operator or open_shard"
    ):
        eigenpairs("matrix")
    poisoned = with_spectrum(SPECTRA["hessian"])
    poisoned[3, 5] = np.nan
    with pytest.raises(PipelineError, match="holds NaN or infinity"):
        eigenpairs(poisoned)


def test_a_matrix_that_is_not_symmetric_is_refused():
    matrix = np.random.default_rng(0).standard_normal((100, 100))
    with pytest.raises(PipelineError, match="the matrix is not symmetric"):
        eigenpairs(matrix, 5, 0, block_size=4)
    with pytest.raises(PipelineError, match="products with the matrix are symmetric to"):
        eigenpairs(DenseMatrix(matrix), 5, 0, block_size=4)  # of which products alone are known


def test_memory_that_holds_no_basis_is_told_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(rows, "available_memory", lambda: 10**5)
    message = r"21 eigenpairs of P = 10,000 weights need .* MB of memory for a basis, .* may be taken: ask for fewer"
    with pytest.raises(PipelineError, match=message):
        eigenpairs(Laplacian(10_000), block_size=4)


class Tensors:
    """A matrix that multiplies tensors, as operators do."""

    columns_per_pass = 1

    def __init__(self, matrix, dtype):
        self.matrix = torch.from_numpy(matrix).to(dtype)
        self.dtype, self.device = dtype, torch.device("cpu")
        self.given = []

    @property
    def num_rows(self):
        return len(self.matrix)

    def matvec(self, vectors):
        assert vectors.dtype == self.dtype
        self.given.append(vectors.clone())
        return self.matrix @ vectors


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ["hessian", "multiple", "low_rank_indefinite", "tiny_scale", "zero"])
def test_tensors_are_multiplied_as_tensors_in_their_precision(name, dtype, tolerance):
    eigenvalues = SPECTRA[name]
    matrix = Tensors(with_spectrum(eigenvalues), dtype)
    found = eigenpairs(matrix, top=10, bottom=3, tolerance=tolerance)
    largest = np.abs(eigenvalues).max()
    np.testing.assert_allclose(found.values, ends(eigenvalues, 10, 3), atol=2 * tolerance * largest)
    assert found.vectors.dtype == np.dtype(str(dtype).removeprefix("torch."))
    vectors = found.vectors.astype(np.float64)
    residuals = np.linalg.norm(with_spectrum(eigenvalues) @ vectors - vectors * found.values, axis=0)
    assert (residuals <= 1.5 * tolerance * largest).all()


class Reflected:
    """A diagonal matrix of float32 tensors, reflected from both sides: as many rows as are summed at once in it."""

    columns_per_pass, dtype, device, num_rows = 1, torch.float32, torch.device("cpu"), 2 * rows.CHUNK

    def __init__(self, scale):
        self.eigenvalues = np.sort(
            np.concatenate([np.linspace(-0.05, 0.05, self.num_rows - 10), np.arange(1, 11)])
        )
        self.diagonal = torch.tensor(scale * self.eigenvalues, dtype=torch.float32)[:, None]
        normal = torch.from_numpy(np.random.default_rng(0).standard_normal(self.num_rows))
        self.normal = (normal / normal.norm()).float()[:, None]

    def reflect(self, vectors):
        return vectors - 2 * self.normal @ (self.normal.T @ vectors)

    def matvec(self, vectors):
        return self.reflect(self.diagonal * self.reflect(vectors))


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e-19, 1.0, 1e20, 1e30])
def test_single_precision_at_any_scale(scale):
    """Of which the squares are nothing, or infinite."""
    matrix = Reflected(scale)
    found = eigenpairs(matrix, 3, 1, 1e-4)
    np.testing.assert_allclose(found.values / scale, ends(matrix.eigenvalues, 3, 1), atol=1e-4 * 10)
    vectors = torch.from_numpy(found.vectors).double()
    matrix.diagonal, matrix.normal = matrix.diagonal.double() / scale, matrix.normal.double()
    residuals = (matrix.matvec(vectors) - vectors * torch.from_numpy(found.values / scale)).norm(dim=0)
    np.testing.assert_allclose(found.residuals / scale, residuals, rtol=0.01, atol=1e-5)


def test_the_same_products_ask_for_the_same_vectors_bit_for_bit():
    first, second = (Tensors(with_spectrum(SPECTRA["wigner"]), torch.float32) for _ in range(2))
    for matrix in (first, second):
        eigenpairs(matrix, 5, 2, 1e-5, max_columns=40)
    assert len(first.given) == len(second.given) > 40
    assert all(torch.equal(one, other) for one, other in zip(first.given, second.given, strict=True))


@pytest.mark.parametrize("tensors", [False, True])
def test_vectors_to_start_from_save_products_and_change_nothing(tensors):
    eigenvalues = like_a_hessian(600, num_outliers=25)
    near = with_spectrum(eigenvalues) + 1e-4 * with_spectrum(np.random.default_rng(1).standard_normal(600), 3)
    before = eigenpairs(with_spectrum(eigenvalues), 20, 1, block_size=1)
    matrix = Tensors(near, torch.float64) if tensors else near
    cold = eigenpairs(matrix, 20, 1, block_size=1)
    warm = eigenpairs(matrix, 20, 1, block_size=1, start=before.vectors)
    exact = np.linalg.eigvalsh(near)
    np.testing.assert_allclose(warm.values, ends(exact, 20, 1), atol=2e-6 * exact[-1])
    np.testing.assert_allclose(cold.values, ends(exact, 20, 1), atol=2e-6 * exact[-1])
    assert warm.complete


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(PipelineError, match=r"start has shape \(7, 2\): give \(500, m\) vectors"):
        eigenpairs(Laplacian(500), 2, block_size=4, start=np.zeros((7, 2)))


def test_a_start_that_is_not_real_is_refused():
    with pytest.raises(PipelineError, match="start holds complex128, not real numbers"):
        eigenpairs(Laplacian(500), 2, block_size=4, start=np.ones((500, 2), complex))


def test_a_start_that_is_wrong_misleads_nobody():
    """Vectors orthogonal to all that is wanted, and twice the same."""
    matrix = np.diag(np.linspace(0, 1, 300))
    start = np.eye(300)[:, [3, 3, 4, 5]]
    found = eigenpairs(matrix, 4, 0, 1e-8, block_size=2, start=start)
    np.testing.assert_allclose(found.values, np.linspace(0, 1, 300)[::-1][:4], atol=1e-7)


def test_products_that_are_too_noisy_are_told_with_a_tolerance_that_does():
    rng = np.random.default_rng(0)
    matrix = with_spectrum(like_a_hessian(400))

    class Noisy(Stored):
        def matvec(self, vectors):
            return self.matrix @ vectors + 1e-4 * rng.standard_normal(vectors.shape)

    with pytest.raises(PipelineError, match=r"raise it to \de-0\d, or compute in float64"):
        eigenpairs(Noisy(matrix), 5, 0, 1e-6)


def test_pairs_whose_own_products_leave_too_much_are_refused(monkeypatch):
    """Whatever the basis shows."""
    rng, images = np.random.default_rng(0), pair_search.PairSearch._images

    def wrong(self, vectors):
        exact = images(self, vectors)
        return exact + 1e-6 * rng.standard_normal(exact.shape)

    monkeypatch.setattr(pair_search.PairSearch, "_images", wrong)
    with pytest.raises(PipelineError, match=r"raise it to \de-0\d, or compute in float64"):
        eigenpairs(with_spectrum(like_a_hessian(400)), 5, 0, 1e-7, block_size=2)


@pytest.mark.parametrize("tensors", [False, True])
def test_pairs_whose_own_products_leave_too_much_are_refined(monkeypatch, tensors):
    converge, tolerances = pair_search.PairSearch._converge, iter([1e-3])

    def loosely(self, state):
        asked, self.tolerance = self.tolerance, next(tolerances, self.tolerance)
        converge(self, state)
        self.tolerance = asked

    monkeypatch.setattr(pair_search.PairSearch, "_converge", loosely)
    monkeypatch.setattr(pair_search.PairSearch, "_is_complete", lambda self, state: True)
    matrix = with_spectrum(SPECTRA["wigner"])
    found = eigenpairs(Tensors(matrix, torch.float64) if tensors else matrix, 6, 2, 1e-9, block_size=2)
    assert_pairs(found, Stored(matrix), ends(SPECTRA["wigner"], 6, 2), 1e-9)
