"""Limit laws, against moments in closed form, the known special case and SciPy's test."""

import numpy as np
import pytest
from scipy import integrate, stats

from pipeline.law import MarchenkoPastur, marchenko_pastur
from pipeline.law.marchenko_pastur import Law, edges

SMALL = MarchenkoPastur(seed=0, dimensions=(15, 90), ratio=4, norm=4.0)


def moments_of(norm):
    """E g and E g² for g = σ'(‖w‖ ξ), by adaptive quadrature."""

    def g(x):
        return 0.25 / np.cosh(norm * x / 2) ** 2

    return [integrate.quad(lambda x, k=k: g(x) ** k * stats.norm.pdf(x), -12, 12)[0] for k in (1, 2)]


def moment(law, power):
    middle = (law.x[1:] + law.x[:-1]) / 2
    return float((np.diff(law.F) * middle**power).sum())


def test_the_law_holds(held):
    outcome = SMALL.measure(None)
    assert all(held(outcome).values()), outcome.checks


def test_it_is_not_held_by_wrong_matrices(wrong, held):
    wrong(marchenko_pastur, lambda matrix: 1.2 * matrix)
    found = held(SMALL.measure(None))
    assert not any(found[name] for name in ("distance", "convergence", "distance_away"))


@pytest.mark.parametrize("c", [0.1, 0.25, 0.8])
def test_at_zero_the_general_law_is_a_quarter_of_marchenko_and_pastur(c):
    general, quarter = Law.of(c, 0.0), Law.marchenko_pastur(c, 0.25)
    assert edges(c, 0.0) == pytest.approx(((1 - c**0.5) ** 2 / 4, (1 + c**0.5) ** 2 / 4), rel=1e-4)
    grid = np.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(
        np.interp(grid, general.x, general.F), np.interp(grid, quarter.x, quarter.F), atol=1e-3
    )


@pytest.mark.parametrize(("c", "norm"), [(0.25, 0.0), (0.25, 2.0), (0.25, 4.0), (0.5, 1.0)])
def test_moments_of_the_limit_law(c, norm):
    """tr H / d → E g and tr H² / d → c E g² + (E g)²: sums over pairs of samples."""
    first, second = moments_of(norm)
    law = Law.of(c, norm)
    assert moment(law, 1) == pytest.approx(first, rel=2e-3)
    assert moment(law, 2) == pytest.approx(c * second + first**2, rel=2e-3)


def test_moments_of_marchenko_and_pastur():
    law = Law.marchenko_pastur(0.3, 2.0)
    assert moment(law, 1) == pytest.approx(2.0, rel=1e-4)
    assert moment(law, 2) == pytest.approx(4 * (1 + 0.3), rel=1e-4)


def test_the_distance_is_that_of_kolmogorov_and_smirnov():
    values = np.sort(np.random.default_rng(0).uniform(size=50))
    expected = stats.kstest(values, "uniform").statistic
    assert Law(np.array([0.0, 1.0]), np.array([0.0, 1.0])).distance(values) == pytest.approx(expected)
