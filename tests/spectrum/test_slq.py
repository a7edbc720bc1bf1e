"""Oracles: all eigenvalues of known matrices; closed forms; error bars by how often they hold what they should."""

import numpy as np
import pytest
from support.matrices import SPECTRA, Laplacian, Stored, like_a_hessian, with_spectrum

from pipeline.errors import PipelineError
from pipeline.spectrum import SLQ, TopK
from pipeline.spectrum.density import density_of, estimate, fit_grid, resolution_of
from pipeline.spectrum.lanczos import quadrature_of, random_start
from pipeline.spectrum.protocol import Quadrature


def decomposed(matrix, **options):
    return SLQ(**{"num_top": 5, "num_vectors": 20, **options}).decompose(matrix)


def distance(one, other, grid):
    """Between two densities, from 0 to 2."""
    return np.trapezoid(np.abs(one - other), grid.coordinates)


def grid_for(quadrature, eigenvalues):
    largest = np.abs(eigenvalues).max() or 1.0
    relative = max(1e-6, resolution_of(quadrature) / largest)
    return fit_grid(float(eigenvalues.min()), float(eigenvalues.max()), relative_threshold=relative)


def test_quadrature_gives_the_moments_of_each_vector():
    matrix = with_spectrum(SPECTRA["wigner"])
    state = random_start(350, 4, seed=1)
    vectors = power = state.block.T.copy()
    for _ in range(6):
        state.advance(lambda block: matrix @ block, 4)
    found = quadrature_of(state.projected, [4] * 6, 350)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-12)
    for degree in range(12):  # exact below twice the number of passes
        expected = (vectors * power).sum(axis=0)
        np.testing.assert_allclose((found.weights * found.nodes**degree).sum(axis=1), expected, atol=1e-12)
        power = matrix @ power
    assert np.abs((found.weights * found.nodes**13).sum(axis=1) - (vectors * power).sum(axis=0)).max() > 1e-9
    before = found.earlier  # of four passes
    power = vectors
    for degree in range(8):
        expected = (vectors * power).sum(axis=0)
        np.testing.assert_allclose((before.weights * before.nodes**degree).sum(axis=1), expected, atol=1e-12)
        power = matrix @ power


def test_a_basis_of_the_whole_space_gives_the_density_of_all_eigenvalues():
    eigenvalues = np.array([-3.0, -1, -1e-3, 1e-5, 0.2, 0.5, 1, 4, 5, 1000])
    found = decomposed(Stored(with_spectrum(eigenvalues)), num_top=2, num_vectors=3, num_steps=4).quadrature
    grid = grid_for(found, eigenvalues)
    assert grid.threshold == pytest.approx(1e-3)  # all of it is resolved
    values, error = estimate(found, grid)
    np.testing.assert_allclose(values, density_of(eigenvalues, grid), atol=1e-6)
    assert not error.any()


@pytest.mark.parametrize("name", ["wigner", "both_signs_alike", "negative_definite", "hessian", "multiple"])
def test_density_against_that_of_all_eigenvalues(name):
    eigenvalues = SPECTRA[name]
    matrix = Stored(with_spectrum(eigenvalues))
    found = decomposed(matrix, tolerance=0.5)
    # Pairs and density by the same passes, 12 or as many as span the space.
    assert matrix.num_passes == found.num_passes == min(12, -(-len(eigenvalues) // 20))
    grid = grid_for(found.quadrature, eigenvalues)
    values, _ = estimate(found.quadrature, grid)
    assert np.trapezoid(values, grid.coordinates) == pytest.approx(1, abs=1e-7)
    assert distance(values, density_of(eigenvalues, grid), grid) < 0.12


def test_density_of_a_chain_in_closed_form():
    """Eigenvalues 2 - 2 cos x with x uniform on (0, pi): the arcsine law, at a P at which no one is told apart."""
    matrix = Laplacian(5_000)
    found = decomposed(matrix, num_top=2, num_vectors=8, num_steps=20, tolerance=0.9)
    grid = fit_grid(0.0, 4.0, relative_threshold=0.1, num_points=200)
    values, error = estimate(found.quadrature, grid)

    angles = (np.arange(50_000) + 0.5) * np.pi / 50_000
    expected = density_of(2 - 2 * np.cos(angles), grid)
    assert np.abs(values - expected).max() < 0.03 * expected.max()
    assert error.max() < 0.03 * expected.max()  # of 8 · 5,000 independent numbers


def test_error_bars_hold_the_truth_as_often_as_they_say():
    """Over many seeds, at points of the grid with bulk and with outliers: two standard errors hold it in 95 of 100."""
    eigenvalues = like_a_hessian(600, num_outliers=30)
    stored = Stored(with_spectrum(eigenvalues))
    held, held_by_one = [], []
    for seed in range(30):
        quadrature = decomposed(stored, num_vectors=30, seed=seed, tolerance=0.9, num_steps=8).quadrature
        grid = fit_grid(eigenvalues[0], eigenvalues[-1], relative_threshold=1e-3, num_points=200)
        values, error = estimate(quadrature, grid)
        exact = density_of(eigenvalues, grid)
        seen = exact > 1e-3 * exact.max()
        held.append((np.abs(values - exact) <= 2 * error)[seen].mean())
        held_by_one.append((np.abs(values - exact) <= error)[seen].mean())
    assert 0.90 < np.mean(held) < 0.98
    assert 0.60 < np.mean(held_by_one) < 0.76


def test_error_bars_shrink_with_the_number_of_vectors():
    matrix = Stored(with_spectrum(like_a_hessian(1000)))
    grid = fit_grid(-0.1, 10.0, relative_threshold=1e-3)
    few, many = (
        estimate(decomposed(matrix, num_vectors=m, num_steps=8, tolerance=0.9).quadrature, grid)[1].mean()
        for m in (10, 90)
    )
    assert few / many == pytest.approx(3 * np.sqrt(0.99 / 0.91), rel=0.3)


def test_vectors_that_span_the_space_have_no_error():
    each = np.random.default_rng(0).random((8, 8))
    weights = each / each.sum(axis=1, keepdims=True)
    grid = fit_grid(-1.0, 1.0)
    quadrature = Quadrature(np.linspace(-1, 1, 8), weights, 8)
    assert not estimate(quadrature, grid)[1].any()
    assert estimate(Quadrature(quadrature.nodes, weights, 80), grid)[1].any()


def test_more_passes_resolve_smaller_eigenvalues():
    eigenvalues = like_a_hessian(1000)
    matrix = Stored(with_spectrum(eigenvalues))
    coarse, fine = (resolution_of(decomposed(matrix, num_steps=n, tolerance=0.9).quadrature) for n in (4, 30))
    assert (
        1e-6 * eigenvalues[-1] * (1 - 1e-9) < fine < coarse < eigenvalues[-1]
    )  # 1e-6 is the finest there is


def test_ends_are_those_of_topk():
    eigenvalues = like_a_hessian(500)
    options = {"num_top": 6, "num_bottom": 2, "tolerance": 1e-7}
    slq = SLQ(**options, num_steps=5).decompose(Stored(with_spectrum(eigenvalues)))
    top = TopK(**options).decompose(Stored(with_spectrum(eigenvalues)))
    np.testing.assert_allclose(slq.eigenvalues, top.eigenvalues, atol=1e-6)
    assert (slq.residuals <= 1e-7 * eigenvalues[-1]).all()
    assert slq.num_passes > 5  # the ends took more passes than the density was given


@pytest.mark.parametrize("name", SPECTRA)
def test_every_spectrum_has_a_density(name):
    eigenvalues = SPECTRA[name]
    found = decomposed(Stored(with_spectrum(eigenvalues)))
    grid = grid_for(found.quadrature, eigenvalues)
    values, error = estimate(found.quadrature, grid)
    assert np.isfinite(error).all()
    assert np.trapezoid(values, grid.coordinates) == pytest.approx(1, abs=1e-6)


def test_memory_is_that_of_its_basis():
    assert SLQ(num_vectors=40, num_steps=12).memory(98_590, 4) < 1.7 * 2**30
    assert SLQ(num_vectors=40, num_steps=12).memory(98_590, 4) > 8 * 40 * 12 * 98_590


def test_what_has_not_converged_is_told():
    with pytest.raises(
        PipelineError, match=r"^spectrum=slq: \d+ of 6 eigenpairs have not converged in 5 passes"
    ):
        SLQ(num_top=5, tolerance=1e-10, num_steps=5, max_passes=5).decompose(Laplacian(3000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_top": 0}, r"spectrum\.num_top=0"),
        ({"num_bottom": -1}, r"spectrum\.num_bottom=-1"),
        ({"num_vectors": 9}, r"spectrum\.num_vectors=9: give a whole number of at least 10, or null \(20\)"),
        ({"num_vectors": 1, "num_top": 1}, r"spectrum\.num_vectors=1.* at least 2"),
        ({"num_steps": 3}, r"spectrum\.num_steps=3: give a whole number of at least 4"),
        ({"tolerance": 1}, r"spectrum\.tolerance=1"),
        ({"max_passes": 11}, r"spectrum\.max_passes=11: give a whole number of at least 12"),
        ({"seed": "abc"}, r"spectrum\.seed='abc'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(PipelineError, match=message):
        SLQ(**options)
