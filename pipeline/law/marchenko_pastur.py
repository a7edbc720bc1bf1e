"""The spectrum of logistic regression on Gaussian samples: a quarter of Marchenko and Pastur's law at w = 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from pipeline.law.nets import matrix, normal, perceptron
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_counts, check_number

SHOWN = 8  # every so many of the eigenvalues, so that lines are seen between points
NUM_POINTS = 2000  # of a distribution function
HEIGHTS = np.geomspace(1.0, 1e-6, 40)  # of z above the real axis, down which solutions are followed
NEWTON_STEPS = 4  # at each height
TRACY_WIDOM = 5.0  # standard scales within which the largest and the smallest eigenvalue lie
CRITERION = nn.BCEWithLogitsLoss()


@dataclass(frozen=True)
class MarchenkoPastur:
    """Eigenvalues of H = (1/N) Σ σ'(wᵀx) x xᵀ against their limit law for d, N → ∞ at d / N fixed.

    dimensions: d, ascending. ratio: N / d, at least 1. norm: ‖w‖ of the second measurement; the first is at w = 0.
    """

    TITLE: ClassVar[str] = "Logistic regression: Marchenko and Pastur's law"
    SOURCE: ClassVar[str] = "Liao and Mahoney 2021, arXiv:2103.01519"

    seed: int
    dimensions: Sequence[int] = (50, 100, 200, 400)
    ratio: int = 4
    norm: float = 4.0

    def __post_init__(self) -> None:
        check_counts("law.dimensions", self.dimensions, minimum=2)
        check_count("law.ratio", self.ratio)
        check_number("law.norm", self.norm, minimum=0.0)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: two Hessians of d weights for each d, by d products each, and their eigenvalues."""
        torch.manual_seed(self.seed)
        c, largest = 1 / self.ratio, max(self.dimensions)
        at_zero = {d: self._eigenvalues(d, 0.0) for d in self.dimensions}
        away = self._eigenvalues(largest, self.norm)
        quarter, limit = Law.marchenko_pastur(c, 0.25), Law.of(c, self.norm)
        distances = [quarter.distance(values) for values in at_zero.values()]
        values, distance = at_zero[largest], limit.distance(away)
        lower, upper = (scale / 4 for scale in _edge_scales(largest, self.ratio * largest))
        checks = [
            Check(
                "upper_edge",
                "largest eigenvalue and (1 + √(d/N))² / 4",
                values[-1],
                "=",
                (1 + c**0.5) ** 2 / 4,
                TRACY_WIDOM * upper,
            ),
            Check(
                "lower_edge",
                "smallest eigenvalue and (1 − √(d/N))² / 4",
                values[0],
                "=",
                (1 - c**0.5) ** 2 / 4,
                TRACY_WIDOM * lower,
            ),
            Check(
                "distance",
                f"distance of the distribution functions at w = 0, d = {largest}",
                distances[-1],
                "=",
                0.0,
                4 / largest,
            ),
            Check(
                "convergence",
                "that distance over the one at the smallest d",
                distances[-1] / distances[0],
                "≤",
                0.5,
            ),
            Check(
                "distance_away",
                f"distance at ‖w‖ = {self.norm:g} from the limit law",
                distance,
                "=",
                0.0,
                2 / (self.ratio * largest) ** 0.5,
            ),
            Check(
                "not_a_quarter",
                f"distance at ‖w‖ = {self.norm:g} from a quarter of Marchenko–Pastur",
                quarter.distance(away),
                "≥",
                0.1,
            ),
        ]
        sentence = (
            f"At w = 0 the distribution of {largest} eigenvalues is {distances[-1]:.4f} from a quarter of Marchenko "
            f"and Pastur's law, and at ‖w‖ = {self.norm:g} it is {distance:.4f} from the law of its own."
        )
        panels = [
            _functions(values, quarter, away, limit, self.norm),
            _convergence(self.dimensions, distances),
        ]
        return Outcome(sentence, checks, panels)

    def _eigenvalues(self, d: int, norm: float) -> Array:
        """Of H for N Gaussian samples with random labels, ascending; w along the first axis."""
        net = perceptron([d, 1], bias=False)
        next(net.parameters()).data.zero_()[0, 0] = norm
        N = self.ratio * d
        labels = torch.randint(2, (N, 1)).double()
        values: Array = torch.linalg.eigvalsh(matrix(net, CRITERION, normal(N, d), labels)).numpy()
        return values


@dataclass(frozen=True)
class Law:
    """A distribution function: F at ascending points x, from 0 to 1."""

    x: Array
    F: Array

    @staticmethod
    def marchenko_pastur(c: float, scale: float) -> Law:
        """That of scale · XᵀX / N for c = d / N ≤ 1, by its density √((b − x)(x − a)) / (2πcx) in closed form."""
        a, b = (1 - c**0.5) ** 2, (1 + c**0.5) ** 2
        angle = np.linspace(0.0, np.pi, NUM_POINTS)
        x = (a + b) / 2 - (b - a) / 2 * np.cos(angle)
        with np.errstate(invalid="ignore"):  # at x = 0, for c = 1
            density = ((b - a) / 2 * np.sin(angle)) ** 2 / (2 * np.pi * c * x)  # by the angle
        return Law(scale * x, _integral(angle, np.nan_to_num(density)))

    @staticmethod
    def of(c: float, norm: float) -> Law:
        """That of (1/N) Σ g_n x_n x_nᵀ with g = σ'(‖w‖ ξ), ξ standard normal.

        Its Stieltjes transform m(z) solves m (−z + E[g / (1 + c g m)]) = 1; the density is Im m / π on the real axis.
        """
        g, weights = _curvatures(norm)
        a, b = edges(c, norm)
        angle = np.linspace(0.0, np.pi, NUM_POINTS)
        x = (a + b) / 2 - (b - a) / 2 * np.cos(angle)
        m = 1j * np.ones(NUM_POINTS)
        for height in HEIGHTS:
            z = x + 1j * height
            for _ in range(NEWTON_STEPS):
                inner = 1 + c * m[:, None] * g
                mean = (weights * g / inner).sum(axis=1)
                slope = -(weights * c * g**2 / inner**2).sum(axis=1)
                m = m - (m * (mean - z) - 1) / (mean - z + m * slope)
        return Law(x, _integral(angle, np.maximum(m.imag, 0) / np.pi * (b - a) / 2 * np.sin(angle)))

    def distance(self, eigenvalues: Array) -> float:
        """Sup |F − F_d|, F_d the distribution function of d eigenvalues in ascending order."""
        F, d = np.interp(eigenvalues, self.x, self.F), len(eigenvalues)
        return float(max((np.arange(1, d + 1) / d - F).max(), (F - np.arange(d) / d).max()))


def edges(c: float, norm: float) -> tuple[float, float]:
    """The ends of the support: where x(m) = −1/m + E[g / (1 + c g m)] turns, on both sides of m = 0."""
    g, weights = _curvatures(norm)
    small = np.geomspace(1e-4, 1 - 1e-6, 20_000)
    above, below = -small / (c * g.max()), np.geomspace(1e-3, 1e6, 40_000)
    ends = [-1 / m + (weights * g / (1 + c * m[:, None] * g)).sum(axis=1) for m in (below, above)]
    return float(ends[0].max()), float(ends[1].min())


def _curvatures(norm: float) -> tuple[Array, Array]:
    """Values of g = σ'(‖w‖ ξ) and their weights, by Gauss and Hermite's rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    powers = np.exp(-np.abs(norm * nodes))
    return powers / (1 + powers) ** 2, weights / weights.sum()


def _integral(angle: Array, density: Array) -> Array:
    """The distribution function, scaled to end at one: what rounding and the distance from the real axis leave out."""
    steps = np.diff(angle) * (density[1:] + density[:-1]) / 2
    total: Array = np.concatenate([[0.0], np.cumsum(steps)])
    scaled: Array = total / total[-1]
    return scaled


def _edge_scales(d: int, N: int) -> tuple[float, float]:
    """Johnstone's scales of the smallest and the largest eigenvalue of XᵀX / N."""
    lower, upper = (
        abs(N**0.5 + sign * d**0.5) * abs(d**-0.5 + sign * N**-0.5) ** (1 / 3) / N for sign in (-1, 1)
    )
    return lower, upper


def _functions(values: Array, quarter: Law, away: Array, limit: Law, norm: float) -> Panel:
    shares = np.arange(1, len(values) + 1) / len(values)
    return Panel(
        "Distribution functions",
        "eigenvalue",
        "share of eigenvalues below",
        [
            Series(f"w = 0, d = {len(values)}", values[::SHOWN], shares[::SHOWN], "points"),
            Series(f"‖w‖ = {norm:g}", away[::SHOWN], shares[::SHOWN], "points"),
            Series("a quarter of Marchenko–Pastur", quarter.x, quarter.F, "line"),
            Series("limit law", limit.x, limit.F, "dashes"),
        ],
        "Points are eigenvalues of the Hessian, every eighth one; lines are what the laws say.",
    )


def _convergence(dimensions: Sequence[int], distances: Sequence[float]) -> Panel:
    d = np.array(dimensions, float)
    return Panel(
        "Distance of the distribution functions at w = 0",
        "dimension d",
        "largest difference",
        [Series("measured", d, distances, "points"), Series("1 / d", d, 1 / d, "dashes")],
        "Eigenvalues of random matrices are so evenly spaced that the distance falls about as 1 / d.",
        "xy",
    )
