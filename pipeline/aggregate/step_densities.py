"""Densities of the spectra of one step, on one grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.results import Density
from pipeline.spectrum import Array, DensityGrid, Spectrum, density_of, estimate, fit_grid, resolution_of


def densities(whole: Spectrum, batches: Sequence[Spectrum]) -> Density:
    """Densities of the mean and of each batch on one grid, with the standard error of the mean's.

    Where the mean's is estimated, the grid is linear within what its nodes resolve. A batch's is NaN where its nodes
    do not resolve what the grid shows.
    """
    ends = np.array([spectrum.eigenvalues[[0, -1]] for spectrum in (whole, *batches)])
    seen = [s.quadrature.nodes[[0, -1]] for s in (whole, *batches) if s.quadrature is not None]
    ends = np.concatenate([ends, *(pair[None] for pair in seen)])
    smallest, largest = float(ends.min()), float(ends.max())
    resolution = _resolution(whole) / (max(abs(smallest), abs(largest)) or 1.0)
    grid = fit_grid(smallest, largest, relative_threshold=max(1e-6, resolution))
    values, error = _density(whole, grid)
    of_batches = np.array([_density(batch, grid)[0] for batch in batches])
    error_of_mean = None if whole.complete else error
    return Density(grid.eigenvalues, values, of_batches, error_of_mean, grid.coordinates)


def _resolution(spectrum: Spectrum) -> float:
    if spectrum.complete or spectrum.quadrature is None:
        return 0.0
    return resolution_of(spectrum.quadrature)


def _density(spectrum: Spectrum, grid: DensityGrid) -> tuple[Array, Array]:
    if spectrum.complete or spectrum.quadrature is None:
        values = density_of(spectrum.eigenvalues, grid)
        return values, np.zeros_like(values)
    values, error = estimate(spectrum.quadrature, grid)
    resolution = _resolution(spectrum)
    unresolved = np.abs(grid.eigenvalues) < (resolution if resolution > grid.threshold else 0.0)
    return np.where(unresolved, np.nan, values), np.where(unresolved, np.nan, error)
