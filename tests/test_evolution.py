"""What compares steps: the limit of stability, densities on one grid, overlaps, and the figures of them."""

import numpy as np
import pytest
from report_cases import density as density_at
from report_cases import spectra

from pipeline.evolution import common_densities, linear_width, overlaps, spread_out, stability_limit
from pipeline.figure_evolution import along_steps, densities_along, overlaps_along
from pipeline.figure_style import style
from pipeline.hdf5 import Results

GD = {"learning_rate": 0.4, "momentum": None, "weight_decay": 0.0}
SGD = {
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.5,
    "batch_size": 8,
}


@pytest.fixture(autouse=True)
def look():
    with style():
        yield


@pytest.fixture(scope="module")
def results():
    return {step: spectra(step=step, num_layers=3) for step in (0, 50, 120)}


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
    assert "Minibatches keep" in stability_limit("SGD", SGD, "ggn").why
    adam = stability_limit("Adam", GD, "hessian")
    assert adam.value is None
    assert "does not bound" in adam.why
    assert stability_limit("GD", GD, "fisher").value is None
    for training in ("", "Untrained", "GD"):
        assert stability_limit(training, {}, "hessian").value is None


def test_densities_on_one_grid_are_those_that_it_would_have_given():
    """A density taken on a fine grid of another width, against one taken on the common grid itself."""
    eigenvalues = np.concatenate([-np.geomspace(1e-3, 1, 40), np.geomspace(1e-4, 30, 200)])
    files = {}
    for step, width in ((0, 1e-3), (10, 2e-3)):
        grid = np.sinh(np.linspace(-13, 13, 3000)) * width
        arrays = {"density/grid": grid, "density/values": density_at(eigenvalues, grid, width)}
        files[step] = Results({"num_parameters": 240}, arrays)
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
    each = {i: Results({}, {"mean/top_eigenvectors": space}) for i, space in enumerate(spaces)}
    expected = [[1, 1, 1 / 3, 0], [1, 1, 1 / 3, 0], [1 / 3, 1 / 3, 1, 2 / 3], [0, 0, 2 / 3, 1]]
    np.testing.assert_allclose(overlaps(each), expected, atol=1e-12)


def test_steps_that_crowd_at_the_start_are_told_from_even_ones():
    assert spread_out(np.array([0, 1, 2, 5, 10, 20, 50, 100]))
    assert not spread_out(np.arange(0, 1000, 100))


def test_along_steps_draws_a_point_a_step_and_the_limit(results):
    limit = stability_limit("GD", GD, "hessian")
    largest, trace = along_steps(results, limit).axes
    for axes, name in ((largest, "lambda_max"), (trace, "trace")):
        expected = [each.attrs[name] for each in results.values()]
        np.testing.assert_array_equal(axes.get_lines()[0].get_xydata().T, ([0, 50, 120], expected))
    assert largest.get_lines()[1].get_ydata() == [5.0, 5.0]
    assert r"$2/\eta$ = 5.00" in largest.get_title(loc="left")
    assert len(trace.get_lines()) == 1
    assert len(along_steps(results, stability_limit("", {}, "hessian")).axes[0].get_lines()) == 1


def test_the_effective_rank_has_a_panel_where_it_is_known(results):
    known = {
        step: Results({**each.attrs, "effective_rank": 3.0 + step}, each.arrays)
        for step, each in results.items()
    }
    figure = along_steps(known, stability_limit("", {}, "hessian"))
    assert figure.axes[2].get_title(loc="left") == "effective rank"
    np.testing.assert_array_equal(figure.axes[2].get_lines()[0].get_ydata(), [3.0, 53.0, 123.0])


def test_densities_along_have_a_row_a_step_and_marks_at_the_top_eigenvalues(results):
    axes = densities_along(results).axes[0]
    (mesh,) = axes.collections
    found = common_densities(results)
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), 0) > 0, found.values > found.floor)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "50", "120"]
    for row, (step, line) in enumerate(zip(results, axes.get_lines(), strict=True)):
        np.testing.assert_array_equal(line.get_xdata(), results[step].arrays["mean/top_eigenvalues"])
        assert set(line.get_ydata()) == {row}


def test_overlaps_along_are_a_matrix(results):
    axes = overlaps_along(results).axes[0]
    np.testing.assert_array_equal(axes.get_images()[0].get_array(), overlaps(results))
    assert len(axes.texts) == 9


def test_one_step_has_no_evolution_and_no_density_no_heat_map(results):
    one = {0: results[0]}
    assert along_steps(one, stability_limit("", {}, "hessian")) is None
    assert overlaps_along(one) is None
    assert densities_along(one) is None
    bare = {
        step: Results(each.attrs, {k: v for k, v in each.arrays.items() if not k.startswith("density/")})
        for step, each in results.items()
    }
    assert densities_along(bare) is None
