"""`pipeline.plot_spectrum`: what is drawn is a density of the eigenvalues, on the axes that were given."""

import doctest
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from support.report_cases import put, spectra
from support.shard_files import symmetric, write

import pipeline
from pipeline.errors import PipelineError
from pipeline.report import spectrum_axes
from pipeline.system import RunFolder


@pytest.fixture
def ax():
    return Figure().subplots()


def share(line, low, high):
    """∫ density dt between two eigenvalues, t = asinh(λ / threshold) / ln 10."""
    grid, values = (np.asarray(part) for part in line.get_data())
    threshold = 1e-6 * np.abs(EIGENVALUES).max()
    t = np.arcsinh(grid / threshold) / np.log(10)
    inside = (grid > low) & (grid < high)
    return np.trapezoid(np.nan_to_num(values[inside]), t[inside])


EIGENVALUES = np.array([-0.1, 1e-3, 1e-3, 1.0])


def test_the_curve_is_the_density_of_the_eigenvalues(ax):
    rotation = np.linalg.qr(symmetric(4))[0]
    assert pipeline.plot_spectrum(rotation * EIGENVALUES @ rotation.T, ax, label="mine", color="red") is ax
    line = ax.lines[0]
    assert (line.get_label(), line.get_color()) == ("mine", "red")
    assert share(line, -10, 10) == pytest.approx(1, abs=0.01)
    assert share(line, -0.3, -0.03) == pytest.approx(0.25, abs=0.01)
    assert share(line, 3e-4, 3e-3) == pytest.approx(0.5, abs=0.01)
    assert ax.lines[1].get_xdata() == pytest.approx([1.0, 1e-3, 1e-3, -0.1])
    assert ax.get_ylabel() == "density per decade of |λ|"
    low, high = ax.get_xlim()
    assert low < -0.1
    assert high > 1.0


def test_eigenvalues_may_be_given_as_they_are(ax):
    pipeline.plot_spectrum(EIGENVALUES[::-1], ax)
    assert share(ax.lines[0], 0.3, 3.0) == pytest.approx(0.25, abs=0.01)


def test_several_matrices_share_axes(ax):
    pipeline.plot_spectrum(np.diag([1e-3, 1.0]), ax)
    pipeline.plot_spectrum(np.diag([-50.0, 1.0]), ax)
    low, high = ax.get_xlim()
    assert low < -50
    assert high > 1
    assert ax.lines[0].get_color() != ax.lines[2].get_color()


def test_a_run_has_its_own_density_and_band(ax, tmp_path):
    file = spectra()
    density = replace(file.density, standard_error=0.1 * file.density.values)
    put(RunFolder(tmp_path), replace(file, density=density))
    pipeline.plot_spectrum(pipeline.open_run(tmp_path), ax)
    grid, values = ax.lines[0].get_data()
    assert np.array_equal(grid, density.grid)
    shown = np.isfinite(values)
    assert np.array_equal(values[shown], density.values[shown])
    assert len(ax.collections) == 1


def test_a_shard(ax, tmp_path):
    pipeline.plot_spectrum(pipeline.open_shard(write(tmp_path / "one.h5", symmetric(23))), ax)
    assert len(ax.lines) == 2


def test_axes_are_made_where_none_are_given():
    mpl.use("agg")
    import matplotlib.pyplot as plt

    ax = pipeline.plot_spectrum(np.eye(3))
    assert ax.figure.number in plt.get_fignums()
    plt.close(ax.figure)


def test_what_is_no_axes_or_nothing_to_draw_is_refused(ax):
    with pytest.raises(PipelineError, match="ax is of type str: give matplotlib axes"):
        pipeline.plot_spectrum(np.eye(2), "left")
    with pytest.raises(PipelineError, match="no eigenvalues to draw"):
        pipeline.plot_spectrum(np.array([]), ax)
    with pytest.raises(PipelineError, match="must be finite"):
        pipeline.plot_spectrum(np.array([1.0, np.nan]), ax)


def test_example_in_the_docstring():
    outcome = doctest.testmod(spectrum_axes, raise_on_error=True)
    assert outcome.attempted > 0
    import matplotlib.pyplot as plt

    plt.close("all")


def test_a_distribution_and_what_gives_products_alone(ax):
    class Products:
        num_rows, dtype = 4, np.float64

        def matvec(self, vectors):
            return EIGENVALUES[:, None] * vectors.reshape(4, -1)

    pipeline.plot_spectrum(Products(), ax)
    pipeline.plot_spectrum(pipeline.density(np.diag(EIGENVALUES)), ax)
    drawn = [line for line in ax.lines if line.get_gid() == spectrum_axes.OURS]
    assert [share(line, -10, 10) for line in drawn] == pytest.approx([1, 1], abs=0.02)
    assert len(ax.collections) == 2
