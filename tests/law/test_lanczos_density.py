"""The exact spectrum by the span of the inputs, against the dense matrix; quadrature, against what vectors see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.compute import hessian
from pipeline.law import LanczosDensity, input_span, lanczos_density
from pipeline.law.input_span import reduced_hessian
from pipeline.law.lanczos_density import (
    Recorded,
    distance,
    holds,
    polynomial_errors,
    smoothing_bound,
)
from pipeline.operator import curvature_operator
from pipeline.spectrum import Quadrature, distribution_of

SMALL = LanczosDensity(
    seed=0, size=12, hidden_size=3, num_samples=60, num_updates=30, num_vectors=2, num_steps=(4, 24, 40)
)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    inputs, span, targets = SMALL._samples()
    net = SMALL._trained(inputs, targets)
    dense = hessian(net, lanczos_density.CROSS_ENTROPY, inputs, targets, strategy="hvp").numpy()
    reduced = reduced_hessian(net, lanczos_density.CROSS_ENTROPY, inputs, span, targets)
    return net, inputs, targets, reduced, dense


def test_the_law_holds(held):
    outcome = SMALL.measure(None)
    assert all(held(outcome).values()), outcome.checks


def test_eigenvalues_are_those_of_the_dense_matrix(made):
    exact, dense = made[3], made[4]
    values, vectors = np.linalg.eigh(dense)
    assert len(dense) == 3 * 144 + 3 + 40
    assert len(exact.values) < len(dense)
    np.testing.assert_allclose(exact.all(len(dense)), values, atol=1e-11 * values[-1])
    probes = np.random.default_rng(1).standard_normal((len(dense), 3))
    np.testing.assert_allclose(exact.product(probes), dense @ probes, atol=1e-11)
    points, weights = exact.seen_by(probes)
    for power in range(4):
        moments = np.einsum("pm,pm->m", probes, vectors @ (values[:, None] ** power * (vectors.T @ probes)))
        expected = moments if power else np.ones(3)  # what is not in the span is what is missing to one
        np.testing.assert_allclose(weights @ points**power, expected, rtol=1e-9)


def test_two_nodes_of_a_distribution_that_is_known():
    """Gauss quadrature of equal weights at −1, 0 and 1: ±√(2/3), exact to degree 3, 4/9 in place of 2/3 at x⁴."""
    seen = np.array([-1.0, 0.0, 1.0]), np.full((1, 3), 1 / 3)
    rule = Quadrature(np.array([-1, 1]) * np.sqrt(2 / 3), np.full((1, 2), 0.5), 3)
    errors = polynomial_errors(rule, seen, 5)
    np.testing.assert_allclose(errors, [0, 0, 0, 0, 8 * (2 / 3 - 4 / 9)], atol=1e-14)
    assert lanczos_density.sums_below(rule, np.array([-1.0, 0.0, 1.0])) == pytest.approx([0, 0.5, 1])


def test_the_bound_is_above_errors_of_chebyshev_nodes():
    """Gauss quadrature of the arcsine law, whose integrals are means over equidistant angles."""
    x = np.linspace(-1, 1, 101)[:, None]

    def smoothed(steps):
        nodes = np.cos((np.arange(steps) + 0.5) * np.pi / steps)
        return np.exp(-((x - nodes) ** 2) / (2 * 0.1**2)).mean(axis=1)

    exact = smoothed(2000)
    errors = [np.abs(smoothed(steps) - exact).max() for steps in (10, 20, 30)]
    bounds = [smoothing_bound(steps, 0.1) for steps in (10, 20, 30)]
    assert all(error <= bound for error, bound in zip(errors, bounds, strict=True))
    assert bounds[-1] < 1e-5


def test_bands_and_distances_find_a_wrong_spectrum(made):
    net, inputs, targets, exact, dense = made
    operator = curvature_operator(net, lanczos_density.CROSS_ENTROPY, (inputs, targets))
    run = distribution_of(operator, num_vectors=4, num_steps=40)
    values = exact.all(len(dense))
    assert holds(run, values)
    assert distance(run, values) < run.spread
    moved = np.sort(np.where(np.arange(len(values)) < len(values) // 3, -values[-1] / 2, values))
    assert not holds(run, moved)
    assert distance(run, moved) > run.spread
    narrow = replace(run, low=np.maximum(run.low, 0.5), high=run.high)
    assert not holds(narrow, values)


def test_it_is_not_held_by_wrong_matrices(wrong, held, monkeypatch):
    wrong(input_span)
    assert not held(SMALL.measure(None))["reduction"]
    right = Recorded.matvec
    monkeypatch.setattr(Recorded, "matvec", lambda self, vectors: 1.001 * right(self, vectors))
    assert not held(SMALL.measure(None))["polynomials"]


def test_it_is_not_held_by_a_band_of_too_little(held, monkeypatch):
    right = lanczos_density.density

    def thin(*args, **options):
        run = right(*args, **options)
        middle = (run.low + run.high) / 2
        return replace(run, low=middle, high=middle)

    monkeypatch.setattr(lanczos_density, "density", thin)
    assert not held(SMALL.measure(None))["band"]
