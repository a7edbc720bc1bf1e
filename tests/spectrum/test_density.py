import numpy as np
import pytest
from scipy.stats import norm
from spectrum.matrices import SPECTRA, Stored, like_a_hessian, with_spectrum

from pipeline.errors import PipelineError
from pipeline.spectrum.density import WIDTH, density_of, fit_grid, lanczos_density, lanczos_quadrature


def grid_of(eigenvalues, **options):
    return fit_grid(float(np.min(eigenvalues)), float(np.max(eigenvalues)), **options)


@pytest.mark.parametrize("name", SPECTRA)
def test_density_integrates_to_one(name):
    eigenvalues = SPECTRA[name]
    grid = grid_of(eigenvalues)
    density = density_of(eigenvalues, grid)
    assert (density >= 0).all()
    assert np.trapezoid(density, grid.coordinates) == pytest.approx(1, abs=1e-7)


def test_grid_covers_range_and_zero_in_even_steps():
    grid = fit_grid(2.0, 50.0, num_points=501)
    assert grid.eigenvalues[0] < 0
    assert grid.eigenvalues[-1] > 50
    assert grid.threshold == pytest.approx(5e-5)
    np.testing.assert_allclose(np.diff(grid.coordinates), np.diff(grid.coordinates)[0], rtol=1e-10)
    np.testing.assert_allclose(grid.transform(grid.eigenvalues), grid.coordinates, atol=1e-12)


def test_coordinate_counts_decades_far_from_zero_and_is_linear_near_it():
    grid = fit_grid(-1.0, 1.0)
    far = grid.transform(np.array([1e-4, 1e-3, 1e-2]))
    np.testing.assert_allclose(np.diff(far), 1, atol=1e-4)
    near = grid.transform(np.array([-2e-8, -1e-8, 0, 1e-8, 2e-8]))
    np.testing.assert_allclose(near, np.arange(-2, 3) * 1e-2 / np.log(10), rtol=1e-3, atol=1e-16)
    np.testing.assert_array_equal(grid.transform(np.array([-0.3])), -grid.transform(np.array([0.3])))


def test_one_eigenvalue_is_one_gaussian():
    grid = fit_grid(-1.0, 10.0)
    expected = norm.pdf(grid.coordinates, loc=np.arcsinh(3 / 1e-5) / np.log(10), scale=0.2)
    np.testing.assert_allclose(density_of(np.array([3.0]), grid, width=0.2), expected, atol=1e-12)


def test_density_is_the_weighted_mean_of_parts_and_chunks_do_not_show(monkeypatch):
    eigenvalues = like_a_hessian(1000)
    grid = grid_of(eigenvalues)
    whole = density_of(eigenvalues, grid)
    parts = 0.3 * density_of(eigenvalues[:300], grid) + 0.7 * density_of(eigenvalues[300:], grid)
    np.testing.assert_allclose(whole, parts, rtol=1e-10)
    monkeypatch.setattr("pipeline.spectrum.density.CHUNK", 7)
    np.testing.assert_allclose(density_of(eigenvalues, grid), whole, rtol=1e-10)


def test_zero_matrix_has_a_density_at_zero():
    grid = fit_grid(0.0, 0.0)
    density = density_of(np.zeros(5), grid)
    assert abs(grid.eigenvalues[density.argmax()]) < grid.threshold * WIDTH
    np.testing.assert_allclose(
        lanczos_density(np.zeros_like, 5, grid, num_vectors=3, num_steps=4), density, rtol=1e-10
    )


def test_quadrature_gives_the_moments_of_its_vectors():
    matrix = with_spectrum(SPECTRA["wigner"])
    blocks = []

    def matvec(vectors):
        blocks.append(vectors.copy())
        return matrix @ vectors

    nodes, weights = lanczos_quadrature(matvec, 350, 4, 6, seed=1)
    assert len(blocks) == 6
    vectors = blocks[0]  # what the first pass multiplies: the random vectors themselves
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), 1, rtol=1e-14)
    power = vectors
    for degree in range(12):
        np.testing.assert_allclose(
            (weights * nodes**degree).sum(axis=1), (vectors * power).sum(axis=0), rtol=1e-11
        )
        power = matrix @ power


def test_quadrature_of_all_steps_finds_each_eigenvalue_once():
    eigenvalues = np.array([-3.0, -1, -1e-3, 1e-5, 0.2, 0.5, 1, 4, 5, 1000])
    nodes, weights = lanczos_quadrature(Stored(with_spectrum(eigenvalues)).matvec, 10, 3, 50, seed=0)
    np.testing.assert_allclose(nodes, np.tile(eigenvalues, (3, 1)), atol=1e-10)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("name", ["low_rank", "rank_one_negative", "identity", "multiple"])
def test_quadrature_of_few_distinct_eigenvalues_stops_early(name):
    eigenvalues = SPECTRA[name]
    nodes, weights = lanczos_quadrature(
        Stored(with_spectrum(eigenvalues)).matvec, len(eigenvalues), 3, 30, seed=0
    )
    for row, share in zip(nodes, weights, strict=True):
        seen = row[share > 1e-12]
        distance = np.abs(seen[:, None] - np.unique(eigenvalues)).min(axis=1)
        assert distance.max() < 1e-7
        assert np.count_nonzero(np.abs(row) > 1e-9) <= len(
            np.unique(eigenvalues)
        )  # no step goes on in rounding
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("name", ["wigner", "both_signs_alike", "negative_definite"])
def test_estimate_against_the_density_of_all_eigenvalues(name):
    eigenvalues = SPECTRA[name]
    # Width and threshold at which 80 nodes are as fine as the kernel.
    grid = grid_of(eigenvalues, relative_threshold=0.1, num_points=600)
    exact = density_of(eigenvalues, grid)
    matrix = Stored(with_spectrum(eigenvalues))
    estimates = [
        lanczos_density(matrix.matvec, len(eigenvalues), grid, num_vectors=m, num_steps=80) for m in (4, 64)
    ]
    few, many = (np.trapezoid(np.abs(e - exact), grid.coordinates) for e in estimates)
    assert matrix.num_passes == 160  # whatever the number of vectors
    assert np.trapezoid(estimates[1], grid.coordinates) == pytest.approx(1, abs=1e-7)
    assert many < 0.05
    assert many < few


def test_estimate_of_bulk_and_outliers_like_a_hessian():
    eigenvalues = like_a_hessian(1000)
    grid = grid_of(eigenvalues, relative_threshold=1e-3)
    estimate = lanczos_density(
        Stored(with_spectrum(eigenvalues)).matvec, 1000, grid, num_vectors=40, num_steps=60
    )
    outliers = grid.eigenvalues > 1
    share = np.trapezoid(estimate[outliers], grid.coordinates[outliers])
    assert share == pytest.approx(0.01, rel=0.25)  # 10 of 1,000; standard error sqrt(2 / 400)
    assert np.trapezoid(np.abs(estimate - density_of(eigenvalues, grid)), grid.coordinates) < 0.06


def test_one_seed_one_estimate():
    matrix = with_spectrum(SPECTRA["wigner"])
    first, second, other = (
        lanczos_quadrature(Stored(matrix).matvec, 350, 2, 5, seed)[0] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-6


def test_errors():
    with pytest.raises(PipelineError, match="no grid of a density from nan to 1"):
        fit_grid(np.nan, 1.0)
    with pytest.raises(PipelineError, match=r"a grid of 20 points has steps of .* take at least \d+ points"):
        fit_grid(-1.0, 1.0, num_points=20)
    grid = fit_grid(-1.0, 1.0)
    with pytest.raises(PipelineError, match="holds NaN or infinity"):
        lanczos_density(lambda vectors: vectors * np.nan, 5, grid)
