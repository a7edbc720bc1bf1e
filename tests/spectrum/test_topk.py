import tracemalloc

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh
from support.matrices import SPECTRA, Laplacian, Stored, like_a_hessian, with_spectrum

from pipeline.errors import PipelineError
from pipeline.spectrum import TopK


def assert_ends(found, matrix, eigenvalues, options):
    num_rows = len(eigenvalues)
    num_top = min(options.num_top, num_rows)
    num_bottom = min(options.num_bottom, num_rows - num_top)
    largest = np.abs(eigenvalues).max()
    bound = 1.01 * options.tolerance * largest + 1e-300
    expected = np.concatenate([eigenvalues[:num_bottom], eigenvalues[num_rows - num_top :]])
    np.testing.assert_allclose(found.eigenvalues, expected, atol=bound)
    np.testing.assert_array_equal(found.top_eigenvalues, found.eigenvalues[num_bottom:][::-1])
    vectors = found.top_eigenvectors
    assert vectors.shape == (num_rows, num_top)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(num_top), atol=1e-12)
    residuals = np.linalg.norm(matrix.matvec(vectors) - vectors * found.top_eigenvalues, axis=0)
    assert (residuals <= bound).all()
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-12 * largest)
    assert found.complete == (num_top + num_bottom == num_rows)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_a_known_spectrum(name, restarts):
    eigenvalues = SPECTRA[name]
    options = TopK(num_bottom=3, tolerance=1e-8, max_columns=110 if restarts else None)
    matrix = Stored(with_spectrum(eigenvalues))
    assert_ends(options.decompose(matrix), matrix, eigenvalues, options)


@pytest.mark.parametrize("seed", range(5))
def test_diagonal_matrix_in_any_order(seed):
    rng = np.random.default_rng(seed)
    eigenvalues = rng.standard_normal(400) ** 3
    matrix = Stored(np.diag(rng.permutation(eigenvalues)))
    options = TopK(num_top=4, num_bottom=4, seed=seed)
    assert_ends(options.decompose(matrix), matrix, np.sort(eigenvalues), options)


def test_laplacian_by_its_products_alone():
    matrix = Laplacian(300)
    options = TopK(num_top=5, num_bottom=5, tolerance=1e-9, max_passes=300, max_columns=90)
    found = options.decompose(matrix)
    assert matrix.num_passes * 10 > 90  # it has restarted
    assert_ends(found, matrix, matrix.eigenvalues, options)
    positions = np.arange(1, 301)
    sines = np.sin(np.outer(positions, positions[::-1][:5]) * np.pi / 301) * np.sqrt(2 / 301)
    np.testing.assert_allclose(np.abs(np.sum(sines * found.top_eigenvectors, axis=0)), 1, atol=1e-6)


def test_rows_of_zeros_change_nothing():
    small = with_spectrum(like_a_hessian(200))
    matrix = np.zeros((300, 300))
    alive = np.sort(np.random.default_rng(3).permutation(300)[:200])
    matrix[np.ix_(alive, alive)] = small
    found, expected = TopK().decompose(Stored(matrix)), TopK().decompose(Stored(small))
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, atol=1e-5)
    assert np.abs(np.delete(found.top_eigenvectors, alive, axis=0)).max() < 1e-5


def test_products_in_float32():
    eigenvalues = like_a_hessian(400)
    single = with_spectrum(eigenvalues).astype(np.float32)

    class Single(Stored):
        def matvec(self, vectors):
            return single @ vectors.astype(np.float32)

    found = TopK().decompose(Single(single))
    np.testing.assert_allclose(found.top_eigenvalues, eigenvalues[::-1][:10], atol=1e-6 * 10)


def test_fewer_passes_than_single_vector_lanczos():
    eigenvalues = like_a_hessian(800)
    blocks, single = Stored(with_spectrum(eigenvalues)), Stored(with_spectrum(eigenvalues))
    TopK(num_bottom=1).decompose(blocks)
    operator = LinearOperator((800, 800), matvec=single.matvec, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(800)
    for k, end in ((10, "LA"), (1, "SA")):
        eigsh(operator, k=k, which=end, tol=1e-6, v0=start, return_eigenvectors=False)
    assert blocks.num_passes <= 12
    assert 4 * blocks.num_passes < single.num_passes


def test_one_seed_one_result():
    matrix = with_spectrum(SPECTRA["wigner"])
    first, second = (TopK(seed=5).decompose(Stored(matrix)) for _ in range(2))
    np.testing.assert_array_equal(first.top_eigenvectors, second.top_eigenvectors)


@pytest.mark.parametrize("num_rows", [50, 5_000])
def test_memory_is_an_honest_bound(num_rows):
    diagonal = np.random.default_rng(0).standard_normal(num_rows)[:, None]

    class Diagonal(Stored):
        def matvec(self, vectors):
            return diagonal * vectors

    options = TopK(tolerance=1e-4, max_passes=200)
    tracemalloc.start()
    options.decompose(Diagonal(diagonal))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    fixed = 16 * 2**20  # for LAPACK and its kind, which is not traced
    assert peak <= options.memory(num_rows, 8)
    assert options.memory(num_rows, 8) - fixed <= 2 * peak


def test_not_converged_names_residuals_and_remedy():
    message = (
        r"^spectrum=topk: 5 of 5 eigenpairs have not converged in 3 passes "
        r"\(residuals (\d\.\de-\d\d, ){5}allowed \d\.\de-10\): "
        r"raise spectrum\.max_passes=3 or spectrum\.tolerance=1e-10, or choose spectrum=exact\.$"
    )
    with pytest.raises(PipelineError, match=message):
        TopK(num_top=3, num_bottom=2, tolerance=1e-10, max_passes=3).decompose(Laplacian(3000))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(poison):
    matrix = with_spectrum(SPECTRA["hessian"])
    matrix[3, 5] = poison
    with pytest.raises(PipelineError, match="holds NaN or infinity"):
        TopK().decompose(Stored(matrix))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_top": 0}, r"spectrum\.num_top=0: give a whole number of at least 1"),
        ({"num_top": "abc"}, r"spectrum\.num_top='abc'"),
        ({"num_top": True}, r"spectrum\.num_top=True"),
        ({"num_bottom": -1}, r"spectrum\.num_bottom=-1"),
        ({"tolerance": 0}, r"spectrum\.tolerance=0: give a number above 0 and below 1"),
        ({"tolerance": "1e-6"}, r"spectrum\.tolerance='1e-6'"),
        ({"max_passes": 1}, r"spectrum\.max_passes=1: give a whole number of at least 2"),
        ({"block_size": 9}, r"spectrum\.block_size=9: give a whole number of at least 10, or null \(20\)"),
        ({"block_size": 4, "num_top": 2, "num_bottom": 5}, r"spectrum\.block_size=4.* at least 5"),
        ({"max_columns": 50}, r"spectrum\.max_columns=50: give a whole number of at least 71"),
        ({"seed": -1}, r"spectrum\.seed=-1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(PipelineError, match=message):
        TopK(**options)
