import numpy as np
import pytest
from scipy.stats import norm
from support.matrices import SPECTRA, like_a_hessian

from pipeline.errors import PipelineError
from pipeline.spectrum.density import density_of, fit_grid


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


def test_errors():
    with pytest.raises(PipelineError, match="no grid of a density from nan to 1"):
        fit_grid(np.nan, 1.0)
    with pytest.raises(PipelineError, match=r"a grid of 20 points has steps of .* take at least \d+ points"):
        fit_grid(-1.0, 1.0, num_points=20)
