"""The density of a spectrum (the field's ESD) on a scale that shows bulk and outliers of both signs at once.

Eigenvalues of a Hessian span ten decades and both signs, so densities are taken over the coordinate
t(λ) = asinh(λ / threshold) / ln 10, not over λ: far from zero a step of 1 in t is a factor of ten in |λ|,
within ±threshold t is linear, and there is no kink between. Values integrate to 1 over t: ∫ density dt = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.errors import PipelineError
from pipeline.spectrum.protocol import Array, Quadrature

WIDTH = 0.1  # of the kernel, one standard deviation, in decades
MARGIN = 6  # standard deviations of the kernel that the grid reaches beyond the spectrum: nothing is cut off
CHUNK = 4096  # eigenvalues smeared out at a time: bounds the (chunk, G) temporary
CHANGE = 0.05  # ∫ |difference of two densities| dt, at most 2, that counts as no change


@dataclass(frozen=True)
class DensityGrid:
    """Points at even steps of t; `eigenvalues` are the same points as λ."""

    threshold: float
    coordinates: Array  # (G,) ascending, even steps

    @property
    def eigenvalues(self) -> Array:
        points: Array = self.threshold * np.sinh(self.coordinates * np.log(10))
        return points

    def transform(self, eigenvalues: Array) -> Array:
        coordinates: Array = np.arcsinh(np.asarray(eigenvalues, np.float64) / self.threshold) / np.log(10)
        return coordinates


def fit_grid(
    smallest: float,
    largest: float,
    *,
    num_points: int = 1024,
    relative_threshold: float = 1e-6,
    width: float = WIDTH,
) -> DensityGrid:
    """A grid that holds zero, the range of eigenvalues given, and the kernel's tails.

    relative_threshold: linear within this times |λ|max; 1e-6 is where signs drown in rounding.

    Raises:
        PipelineError: if the range is not finite, or the grid is too coarse for the kernel.
    """
    if not (np.isfinite(smallest) and np.isfinite(largest) and smallest <= largest):
        raise PipelineError(
            f"no grid of a density from {smallest} to {largest}: the eigenvalues must be finite."
        )
    threshold = relative_threshold * (max(abs(smallest), abs(largest)) or 1.0)
    ends = np.arcsinh(np.array([min(smallest, 0.0), max(largest, 0.0)]) / threshold) / np.log(10)
    coordinates = np.linspace(ends[0] - MARGIN * width, ends[1] + MARGIN * width, num_points)
    step = float(coordinates[1] - coordinates[0])
    if step > width:
        raise PipelineError(
            f"a grid of {num_points} points has steps of {step:.2g}, too coarse for a kernel of width "
            f"{width:g}: take at least {int(np.ceil((coordinates[-1] - coordinates[0]) / width)) + 1} points."
        )
    return DensityGrid(threshold, coordinates)


def density_of(
    eigenvalues: Array, grid: DensityGrid, width: float = WIDTH, weights: Array | None = None
) -> Array:
    """Density (G,) over t of eigenvalues (n,): a Gaussian of standard deviation `width` for each.

    weights: (n,) shares of the whole, summing to 1; None is 1/n each.
    """
    if weights is None:
        weights = np.full(len(eigenvalues), 1 / len(eigenvalues))
    total: Array = _smeared(eigenvalues, grid, width, weights[None])[0]
    return total


def _smeared(eigenvalues: Array, grid: DensityGrid, width: float, weights: Array) -> Array:
    """Densities (m, G) of the same eigenvalues (n,) with weights (m, n)."""
    centers = grid.transform(eigenvalues)
    total: Array = np.zeros((len(weights), len(grid.coordinates)))
    for first in range(0, len(centers), CHUNK):
        part = slice(first, first + CHUNK)
        distances = (grid.coordinates - centers[part, None]) / width  # (chunk, G)
        total += weights[:, part] @ np.exp(-(distances**2) / 2)
    total /= width * np.sqrt(2 * np.pi)
    return total


def estimate(quadrature: Quadrature, grid: DensityGrid, width: float = WIDTH) -> tuple[Array, Array]:
    """Density (G,) over t and its standard error, from what random vectors see of a spectrum.

    The mean over the vectors, and from their spread the standard error of that mean; the vectors are orthogonal, so m
    of P are a sample without replacement: the error is 0 for m = P. The share of one outlier among P comes out with a
    relative error of about sqrt(2 / m), since a vector sees it by one squared component.
    """
    num_vectors = len(quadrature.weights)
    each = _smeared(quadrature.nodes, grid, width, quadrature.weights)  # (m, G)
    if num_vectors == 1:
        return each[0], np.zeros(len(grid.coordinates))
    share_left = max(0.0, 1 - num_vectors / quadrature.num_rows)
    error: Array = each.std(axis=0, ddof=1) * np.sqrt(share_left / num_vectors)
    return each.mean(axis=0), error


def resolution_of(quadrature: Quadrature) -> float:
    """The |λ| under which the nodes do not tell eigenvalues apart, 0 where they are all eigenvalues.

    That is the smallest threshold of a grid on which the density has changed by no more than CHANGE since the earlier
    quadrature, with which the error was larger. Near zero, where a small threshold looks closely, nodes are few.
    """
    earlier, nodes = quadrature.earlier, quadrature.nodes
    if earlier is None:
        return 0.0
    largest = float(np.abs(nodes).max())
    resolved = largest
    for relative in 10.0 ** np.arange(0, -6.1, -0.25):
        grid = fit_grid(float(nodes[0]), float(nodes[-1]), relative_threshold=relative)
        now, before = (
            density_of(one.nodes, grid, weights=one.weights.mean(axis=0)) for one in (quadrature, earlier)
        )
        if np.trapezoid(np.abs(now - before), grid.coordinates) > CHANGE:
            break
        resolved = relative * largest
    return resolved
