"""The certificate of a matrix: random products, checked in a way that shares nothing with the strategy that made it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from pipeline.objective import Batch, Objective, Params, flatten

NUM_PROBES = 2
ROUNDING = 1000  # machine epsilons that the entries of a matrix may be off, relative to its size
DIFFERENCES = (
    1e-14  # rounding of a gradient in float64, relative to its size; over the step, that of a quotient
)
# Of the size of the weights; at the first, truncation and rounding in float64 are about even.
STEPS = (1e-4, 3e-6, 1e-7)
AGREED = 1e-3  # of the slope: where two differences agree so well, no kink of a piecewise linear net lies between them


@dataclass(frozen=True)
class Certificate:
    """How far products with the matrix are from derivatives of the gradient, relative to the latter.

    probe_error: ‖Hv − D(v)‖ / ‖D(v)‖, the largest over random v. tolerance: what rounding of the matrix and the
    error of the difference quotient D(v) may add up to.
    """

    probe_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return isfinite(self.probe_error) and self.probe_error <= self.tolerance

    def __str__(self) -> str:
        return (
            f"H v differs from the derivative of the gradient along v by {self.probe_error:.2g} of its size, "
            f"{self.tolerance:.2g} is allowed"
        )


def directions(num_parameters: int) -> Tensor:
    """Random directions v, (P, NUM_PROBES), float64; always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_parameters, NUM_PROBES, generator=generator, dtype=torch.float64)


def certify(
    objective: Objective,
    params: Params,
    batch: Batch,
    products: Tensor,
    precision: torch.dtype,
    probes: Tensor | None = None,
) -> Certificate:
    """Compare the products H v, (P, NUM_PROBES), with extrapolated central differences of the gradient.

    probes: the directions v; `directions(P)` by default.

    objective, params, batch: in float64. The gradient is one ordinary backward pass, of which no second derivative is
    ever asked: that is what makes this independent. Differences at the steps h and h / 2 give an estimate of their
    own error, which is part of the tolerance. Where they disagree, a kink of a piecewise linear net lies within the
    step, and smaller ones are taken, which may lie on this side of it.
    precision: the dtype in which the matrix was computed.

    Cost: 4 gradients a direction, in float64; up to 12 for piecewise linear nets.
    """
    errors, tolerances = [], []
    probes = directions(len(products)) if probes is None else probes
    rounding = ROUNDING * torch.finfo(precision).eps
    for direction, product in zip(probes.T, products.double().T, strict=True):
        derivative, uncertainty = _derivative(objective, params, batch, direction.to(product))
        size, error = float(derivative.norm()), float((product - derivative).norm())
        errors.append(error / size if size > 0 else error)
        tolerances.append(rounding + (uncertainty / size if size > 0 else 1e-8))
    return Certificate(max(errors), max(tolerances))


def _derivative(
    objective: Objective, params: Params, batch: Batch, direction: Tensor
) -> tuple[Tensor, float]:
    """The derivative of the gradient along a direction, (P,), and how far off it may be."""
    length, size_of_weights = direction.norm(), flatten(params).norm().clamp(min=1e-3)
    found = []
    for relative in STEPS:
        step = relative * float(size_of_weights)
        slopes = [_slope(objective, params, batch, direction / length, h) for h in (step, step / 2)]
        (wide, _), (narrow, gradient) = slopes
        derivative = (4 * narrow - wide) / 3 * length
        size, disagreement = float(derivative.norm()), float((narrow - wide).norm() * length)
        # At a minimum the gradient is small, and its rounding that of its parts, which are as large as H w.
        rounding = DIFFERENCES * (size / relative + gradient * float(length) / step)
        found.append((derivative, disagreement + rounding))
        if disagreement <= AGREED * size:
            break
    return min(found, key=lambda pair: pair[1])


def _slope(
    objective: Objective, params: Params, batch: Batch, unit: Tensor, step: float
) -> tuple[Tensor, float]:
    """The central difference quotient of the gradient along a unit vector, (P,), and the size of the gradient."""
    ahead, behind = (objective.gradient(_moved(params, unit * sign * step), batch) for sign in (1, -1))
    return (ahead - behind) / (2 * step), float(ahead.norm())


def _moved(params: Params, by: Tensor) -> Params:
    parts = by.split([value.numel() for value in params.values()])
    return {
        name: value + part.reshape(value.shape)
        for (name, value), part in zip(params.items(), parts, strict=True)
    }
