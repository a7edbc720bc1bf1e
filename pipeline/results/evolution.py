"""What compares the spectra of several training steps: a common grid, overlaps, and the limit of stability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.results.spectra_file import SpectraFile

Array = NDArray[Any]
NUM_POINTS = 600


@dataclass(frozen=True)
class StabilityLimit:
    """The curvature above which gradient descent leaves a quadratic: its value, its formula, and where it fails.

    value is None where no line belongs into the figure; `explanation` says so in a sentence.
    """

    value: float | None
    symbol: str
    explanation: str


NO_LIMIT = StabilityLimit(None, "", "")


def stability_limit(training: str, options: Mapping[str, Any], matrix: str) -> StabilityLimit:
    """2/η for gradient descent of learning rate η, less the weight decay that training adds to every eigenvalue.

    With momentum β (v ← βv + g, w ← w - ηv) a quadratic is left above 2(1 + β)/η. Both are of steps on all samples:
    minibatches keep λmax below the line. Adam divides each step by a running size of the gradient, so no line of the
    raw learning rate bounds λmax (Cohen et al. 2022, arXiv:2207.14484), and none is drawn.

    training, options: the class of the training and what it was given.
    """
    rate = options.get("learning_rate")
    if matrix not in ("hessian", "ggn"):
        return StabilityLimit(
            None, "", "No line 2/η: it bounds the eigenvalues of the Hessian, not of this matrix."
        )
    if training == "Adam":
        return StabilityLimit(None, "", "No line 2/η: Adam rescales each step, so 2/η does not bound λmax.")
    if training not in ("GD", "SGD") or not isinstance(rate, int | float) or rate <= 0:
        return NO_LIMIT
    momentum, decay = float(options.get("momentum") or 0.0), float(options.get("weight_decay") or 0.0)
    symbol = ("2/η" if momentum == 0 else "2(1+β)/η") + (f" − {decay:g}" if decay else "")
    why = f"Dashed: {symbol} with η = {rate:g}{f', β = {momentum:g}' if momentum else ''}, above which "
    why += "steps of gradient descent grow on a quadratic."
    if training == "SGD" and options.get("batch_size") is not None:
        why += " Minibatches keep λmax below it."
    return StabilityLimit(2 * (1 + momentum) / rate - decay, symbol, why)


def preconditioned_limit(training: str, options: Mapping[str, Any], matrix: str) -> StabilityLimit:
    """2(1 + β₁) / ((1 − β₁) η) for Adam: what λmax of the preconditioned matrix comes to rest at.

    Steps w ← w − η P⁻¹ m with m ← β₁ m + (1 − β₁) g leave a quadratic of Hessian H, P held, where λmax of
    P^(−1/2) H P^(−1/2) is above it: 38/η for β₁ = 0.9 (Cohen et al. 2022, arXiv:2207.14484). Weight decay adds to H, so
    there is no such line then.
    """
    rate, beta = options.get("learning_rate"), options.get("beta1")
    numbers = all(isinstance(number, int | float) for number in (rate, beta))
    if training != "Adam" or matrix not in ("hessian", "ggn") or not numbers or options.get("weight_decay"):
        return NO_LIMIT
    assert isinstance(rate, int | float)
    assert isinstance(beta, int | float)
    why = f"Dashed: 2(1+β₁)/((1−β₁)η) with η = {rate:g}, β₁ = {beta:g}, above which Adam's steps grow on a quadratic."
    if options.get("batch_size") is not None:
        why += " Minibatches keep it below."
    return StabilityLimit(2 * (1 + beta) / ((1 - beta) * rate), "2(1+β₁)/((1−β₁)η)", why)


def limits_of(training: str, options: Mapping[str, Any], matrix: str) -> dict[str, StabilityLimit]:
    """The limits of numbers that are followed along training, by their keys."""
    about = (training, options, matrix)
    return {"lambda_max": stability_limit(*about), "lambda_max_preconditioned": preconditioned_limit(*about)}


def linear_width(grid: Array) -> float:
    """The half-width of the linear part of a grid that is linear around zero and geometric far from it.

    Even steps d of the coordinate are steps of about width * d near zero and ratios of about exp(d) far away.
    """
    steps = np.diff(grid)
    far = int(np.argmax(np.abs(grid)))
    near = far - 1 if far else 1
    ratio = abs(grid[far] / grid[near]) if grid[near] else math.e
    return float(steps[steps > 0].min() / math.log(max(ratio, 1 + 1e-9)))


@dataclass(frozen=True)
class Densities:
    """Densities of the mean at several steps on one grid: per decade of |λ|, linear within ±width."""

    steps: list[int]
    grid: Array  # (G,)
    values: Array  # (S, G), NaN where Lanczos does not resolve eigenvalues
    width: float
    floor: float  # a tenth of what one eigenvalue of P adds


def common_densities(results: Mapping[int, SpectraFile]) -> Densities | None:
    """The densities that the spectra files hold, each on a grid of its own, brought to one grid.

    A density is of a coordinate that depends on its file's width w, so it is multiplied by √(λ²+W²)/√(λ²+w²), which
    keeps its integral, with W the largest of the widths.
    """
    files = {step: each.density for step, each in results.items() if each.density is not None}
    if not files:
        return None
    widths = {step: linear_width(density.grid) for step, density in files.items()}
    width = max(widths.values())
    ends = np.array([density.grid[[0, -1]] for density in files.values()])
    low, high = np.arcsinh(np.array([ends[:, 0].min(), ends[:, 1].max()]) / width)
    grid = width * np.sinh(np.linspace(low, high, NUM_POINTS))
    rows = []
    for step, density in files.items():
        own, values = density.grid, density.values
        factor = np.sqrt((own**2 + width**2) / (own**2 + widths[step] ** 2))
        # interpolated over the coordinate: between two points of the grid λ itself may grow by a tenth
        rows.append(np.interp(np.arcsinh(grid / width), np.arcsinh(own / width), values * factor, 0.0, 0.0))
    num_parameters = max(int(each.numbers["num_parameters"]) for each in results.values())
    values = np.array(rows)
    floor = float(np.nanmax(values)) / (10 * max(num_parameters, 10))
    return Densities(list(files), grid, values, width, floor)


def overlaps(results: Mapping[int, SpectraFile]) -> Array:
    """(S, S): ‖UᵢᵀUⱼ‖² / k for the top eigenspaces of the steps; 1 where they are the same, about k/P by chance.

    Of two eigenspaces of different dimension the smaller one counts. Cost: S² products of (k, P) and (P, k).
    """
    spaces = [each.mean.top_eigenvectors for each in results.values()]
    return np.array(
        [
            [float(np.sum((a.T @ b) ** 2)) / max(1, min(a.shape[1], b.shape[1])) for b in spaces]
            for a in spaces
        ]
    )


def needs_logarithmic_axis(steps: Array) -> bool:
    """Whether steps are spaced so that only a logarithmic axis keeps them apart."""
    return len(steps) > 3 and float(np.median(steps)) < 0.15 * float(np.max(steps))
