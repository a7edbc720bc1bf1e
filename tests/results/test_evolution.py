"""What compares steps: the limit of stability, densities on one grid, overlaps, and the figures of them."""

from dataclasses import replace

import numpy as np
import pytest
from support.report_cases import density as density_at
from support.report_cases import spectra

from pipeline.results.evolution import (
    common_densities,
    limits_of,
    linear_width,
    needs_logarithmic_axis,
    overlaps,
    preconditioned_limit,
    stability_limit,
)
from pipeline.results.spectra_file import Density

GD = {"learning_rate": 0.4, "momentum": None, "weight_decay": 0.0}
SGD = {
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.5,
    "batch_size": 8,
}


def grows(curvature, rate, momentum, decay):
    """Whether descent on ½ curvature w² leaves the minimum, by taking the steps."""
    weight, velocity = 1.0, 0.0
    for _ in range(2000):
        velocity = momentum * velocity + (curvature + decay) * weight
        weight -= rate * velocity
        if abs(weight) > 1e6:
            return True
    return False


@pytest.mark.parametrize(("training", "options"), [("GD", GD), ("SGD", SGD)], ids=["gd", "sgd"])
def test_above_the_limit_steps_grow_and_below_they_do_not(training, options):
    limit = stability_limit(training, options, "hessian")
    options = (options["learning_rate"], options["momentum"] or 0.0, options["weight_decay"])
    assert grows(1.02 * limit.value, *options)
    assert not grows(0.98 * limit.value, *options)


def test_the_limit_says_its_formula_and_where_there_is_none():
    assert stability_limit("GD", GD, "hessian").symbol == "2/η"
    assert stability_limit("GD", GD, "hessian").value == 5.0
    assert stability_limit("SGD", SGD, "ggn").symbol == "2(1+β)/η − 0.5"
    assert "Minibatches keep" in stability_limit("SGD", SGD, "ggn").explanation
    adam = stability_limit("Adam", GD, "hessian")
    assert adam.value is None
    assert "does not bound" in adam.explanation
    assert stability_limit("GD", GD, "fisher").value is None
    for training in ("", "Untrained", "GD"):
        assert stability_limit(training, {}, "hessian").value is None


ADAM = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "batch_size": None}


def adam_grows(curvature, rate, beta):
    """Whether Adam's steps with a preconditioner of 1 leave the minimum of ½ curvature w², by taking the steps."""
    weight, mean = 1.0, 0.0
    for _ in range(4000):
        mean = beta * mean + (1 - beta) * curvature * weight
        weight -= rate * mean
        if abs(weight) > 1e6:
            return True
    return False


@pytest.mark.parametrize(("rate", "beta"), [(0.01, 0.9), (0.2, 0.5), (0.1, 0.0)])
def test_above_adams_limit_preconditioned_steps_grow_and_below_they_do_not(rate, beta):
    limit = preconditioned_limit("Adam", {**ADAM, "learning_rate": rate, "beta1": beta}, "hessian")
    assert adam_grows(1.02 * limit.value, rate, beta)
    assert not adam_grows(0.98 * limit.value, rate, beta)


def test_adams_limit_is_38_over_the_rate_and_is_not_drawn_where_it_does_not_hold():
    assert limits_of("Adam", ADAM, "hessian")["lambda_max_preconditioned"].value == pytest.approx(38 / 0.01)
    assert "Minibatches" in preconditioned_limit("Adam", {**ADAM, "batch_size": 8}, "ggn").explanation
    for options in ({**ADAM, "weight_decay": 0.1}, {}, {"learning_rate": "x", "beta1": 0.9}):
        assert preconditioned_limit("Adam", options, "hessian").value is None
    assert preconditioned_limit("Adam", ADAM, "fisher").value is None
    assert preconditioned_limit("GD", ADAM, "hessian").value is None


def test_densities_on_one_grid_are_those_that_it_would_have_given():
    """A density taken on a fine grid of another width, against one taken on the common grid itself."""
    eigenvalues = np.concatenate([-np.geomspace(1e-3, 1, 40), np.geomspace(1e-4, 30, 200)])
    files = {}
    for step, width in ((0, 1e-3), (10, 2e-3)):
        grid = np.sinh(np.linspace(-13, 13, 3000)) * width
        one = spectra(num_layers=1)
        density = Density(grid, density_at(eigenvalues, grid, width), np.zeros((1, len(grid))))
        files[step] = replace(one, density=density, numbers={"num_parameters": 240})
    found = common_densities(files)
    assert found.width == pytest.approx(2e-3, rel=1e-3)
    far = np.abs(found.grid) > 0.1  # nearer to zero the two kernels differ, as widths do
    expected = density_at(eigenvalues, found.grid, found.width)
    np.testing.assert_allclose(found.values[1], expected, atol=2e-3 * expected.max())
    np.testing.assert_allclose(found.values[0][far], expected[far], atol=1e-2 * expected.max())
    coordinate = np.arcsinh(found.grid / found.width)
    np.testing.assert_allclose(np.trapezoid(found.values, coordinate, axis=1), 1.0, rtol=5e-3)


def test_the_width_of_a_grid_is_found():
    for width in (1e-6, 0.3):
        assert linear_width(np.sinh(np.linspace(-9, 14, 700)) * width) == pytest.approx(width, rel=0.02)


def test_overlaps_are_those_of_subspaces_not_of_vectors():
    rng = np.random.default_rng(0)
    base = np.linalg.qr(rng.normal(size=(30, 6)))[0]
    turned = base[:, :3] @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    half = np.column_stack([base[:, :1], base[:, 3:5]])
    spaces = [base[:, :3], turned, half, base[:, 3:6]]
    one = spectra(num_layers=1)
    each = {i: replace(one, mean=replace(one.mean, top_eigenvectors=space)) for i, space in enumerate(spaces)}
    expected = [[1, 1, 1 / 3, 0], [1, 1, 1 / 3, 0], [1 / 3, 1 / 3, 1, 2 / 3], [0, 0, 2 / 3, 1]]
    np.testing.assert_allclose(overlaps(each), expected, atol=1e-12)


def test_steps_that_crowd_at_the_start_are_told_from_even_ones():
    assert needs_logarithmic_axis(np.array([0, 1, 2, 5, 10, 20, 50, 100]))
    assert not needs_logarithmic_axis(np.arange(0, 1000, 100))


def test_without_densities_there_is_no_common_one():
    assert common_densities({0: replace(spectra(num_layers=1), density=None)}) is None
