"""The certificate of a matrix: random products, checked in a way that shares nothing with the strategy that made it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from pipeline.objective import Batch, Objective, Params, flatten

NUM_PROBES = 2
ROUNDING = 1000  # machine epsilons that the entries of a matrix may be off, relative to its size
DIFFERENCES = 1e-10  # what rounding of gradients in float64 may add to a quotient over such a step
STEP = 1e-4  # of the size of the weights: truncation and rounding in float64 are about even there


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
    own error, which is part of the tolerance; it also covers the kinks of piecewise linear nets.
    precision: the dtype in which the matrix was computed.

    Cost: 4 gradients a direction, in float64.
    """
    errors, tolerances = [], []
    size_of_weights = flatten(params).norm()
    probes = directions(len(products)) if probes is None else probes
    for direction, product in zip(probes.T, products.double().T, strict=True):
        unit = (direction / direction.norm()).to(product)
        step = STEP * float(size_of_weights.clamp(min=1e-3))
        wide = _slope(objective, params, batch, unit, step)
        narrow = _slope(objective, params, batch, unit, step / 2)
        derivative = ((4 * narrow - wide) / 3) * direction.norm()
        size = float(derivative.norm())
        uncertainty = float((narrow - wide).norm() * direction.norm())
        error = float((product - derivative).norm())
        errors.append(error / size if size > 0 else error)
        rounding = ROUNDING * torch.finfo(precision).eps + DIFFERENCES
        tolerances.append(rounding + (uncertainty / size if size > 0 else 1e-8))
    return Certificate(max(errors), max(tolerances))


def _slope(objective: Objective, params: Params, batch: Batch, unit: Tensor, step: float) -> Tensor:
    """The central difference quotient of the gradient along a unit vector, (P,)."""
    ahead, behind = (objective.gradient(_moved(params, unit * sign * step), batch) for sign in (1, -1))
    return (ahead - behind) / (2 * step)


def _moved(params: Params, by: Tensor) -> Params:
    parts = by.split([value.numel() for value in params.values()])
    return {
        name: value + part.reshape(value.shape)
        for (name, value), part in zip(params.items(), parts, strict=True)
    }
