"""The density of a spectrum on matplotlib axes, from Python: `pipeline.plot_spectrum`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import PipelineError
from pipeline.report.figure_style import signed_log
from pipeline.results import Run, SpectraFile, eigenvalues, last_spectra, linear_width
from pipeline.spectrum import Array, SpectralDistribution, density_of, distribution_of, fit_grid

OURS = "spectrum"  # the gid of the curves that are drawn here
NUM_MARKED = 10


class Curve(NamedTuple):
    """A density per decade of |λ| on a grid of eigenvalues, (G,) each, and the eigenvalues that are marked."""

    grid: Array
    values: Array
    error: Array | None
    top: Array
    num_rows: int


def plot_spectrum(matrix: Any, ax: Any = None, **line: Any) -> Any:
    """Draw the density of the eigenvalues of a matrix, and mark the largest ten; returns the matplotlib axes.

    The x axis is λ, logarithmic on both sides of zero and linear within 1e-6 |λ|max; y is the density per decade of |λ|
    (over t = asinh(λ / threshold) / ln 10, in which it integrates to 1), on a logarithmic axis, smoothed by a Gaussian
    of 0.1 decades. An estimated density has a band of two standard errors.

    matrix: what `eigenvalues` takes, eigenvalues themselves, (P,), a run or spectra file of any choice of spectrum,
        what `density` gives, or an operator, whose density is estimated.
    ax: axes to draw on; several matrices may share them. None makes a figure by pyplot.
    line: for `ax.plot`, such as label="step 100" or color="black".

    Raises:
        PipelineError: as `eigenvalues`.

    >>> import matplotlib; matplotlib.use("agg")
    >>> ax = plot_spectrum(np.diag([-0.1, 0.0, 1e-3, 1.0]), label="a matrix")
    >>> ax.get_xlabel()
    'eigenvalue λ'
    """
    curve = _curve_of(matrix)
    if ax is None:
        import matplotlib.pyplot as plt  # as every plotting function does; the report's figures need none

        ax = plt.subplots()[1]
    if not hasattr(ax, "plot"):
        raise PipelineError(f"ax is of type {type(ax).__name__}: give matplotlib axes, or leave it out.")
    floor = float(np.nanmax(curve.values)) / (
        10 * max(curve.num_rows, 10)
    )  # one eigenvalue is ten times as high
    shown = np.where(curve.values > floor, curve.values, np.nan)
    (drawn,) = ax.plot(curve.grid, shown, **line)
    drawn.set_gid(OURS)
    if curve.error is not None:
        lower, upper = (np.maximum(curve.values + side * 2 * curve.error, floor) for side in (-1, 1))
        ax.fill_between(curve.grid, lower, upper, color=drawn.get_color(), alpha=0.25, linewidth=0)
    height = np.full(len(curve.top), 2 * floor)
    ax.plot(curve.top, height, "|", color=drawn.get_color(), markersize=12, markeredgewidth=1.5)
    _scale(ax)
    return ax


def _curve_of(matrix: Any) -> Curve:
    if isinstance(matrix, Run | SpectraFile):
        file = last_spectra(matrix)
        if (density := file.density) is not None:
            num_rows = int(file.layers.offsets[-1])
            top = file.mean.top_eigenvalues
            return Curve(density.grid, density.values, density.standard_error, top, num_rows)
    if hasattr(matrix, "matvec") and not hasattr(matrix, "dense"):
        matrix = distribution_of(matrix)
    if isinstance(matrix, SpectralDistribution):
        top, num_rows = matrix.quadrature.nodes[-1:], matrix.quadrature.num_rows
        return Curve(matrix.grid.eigenvalues, matrix.density, matrix.error, top, num_rows)
    values = _given(matrix)
    if values is None:
        values = eigenvalues(matrix)
    grid = fit_grid(float(values[0]), float(values[-1]))
    return Curve(grid.eigenvalues, density_of(values, grid), None, values[::-1][:NUM_MARKED], len(values))


def _given(matrix: Any) -> Array | None:
    """Eigenvalues that were handed over as such, ascending."""
    if getattr(matrix, "ndim", None) != 1:
        return None
    numbers = matrix.detach().cpu().numpy() if hasattr(matrix, "detach") else np.asarray(matrix)
    if not len(numbers):
        raise PipelineError("there are no eigenvalues to draw: the array is empty.")
    return np.sort(numbers.astype(np.float64))


def _scale(ax: Any) -> None:
    """Axes that hold every curve that was drawn here."""
    curves = [line for line in ax.lines if line.get_gid() == OURS]
    grids = [np.asarray(curve.get_xdata()) for curve in curves]
    seen = [grid[np.isfinite(curve.get_ydata())] for grid, curve in zip(grids, curves, strict=True)]
    ends = np.concatenate([points[[0, -1]] for points in seen])
    signed_log(
        ax, "x", min(float(ends.min()), 0.0), max(float(ends.max()), 0.0), max(map(linear_width, grids))
    )
    ax.set(yscale="log", xlabel="eigenvalue λ", ylabel="density per decade of |λ|")
