"""Derivatives of a function by extrapolated central differences, with the rounding of the function measured."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import must_reach_user

NOISE_STEPS = (
    1e-9,
    3e-7,
)  # of the size of the point: between such points only rounding changes a smooth function
STEPS = (1e-2, 1e-3, 1e-4, 3e-6, 1e-7)  # of the size of the point
NOISE_OF_STEP = (
    1e-9,
    1e-12,
)  # relative noise above which the first, and the second, of these steps come first
AGREED = 1e-3  # of the slope: where two differences agree so well, no kink lies between them
LEAST_NOISE = 2e-16  # relative
SAFETY = 20  # by which the rounding of a quotient may exceed that of one difference over the step
SHARP = 0.01  # of the product: how far off it may be at most, to be of use


class Product(NamedTuple):
    """A product with the matrix, (P,), and how far off it may be, as a norm.

    noise: the rounding of what was differenced, relative to its size: some 1e-16, or 1e-7 where a module computes in
    single precision inside.
    """

    value: Tensor
    uncertainty: float
    noise: float = 0.0


class Start(NamedTuple):
    """A function at the point where it is differentiated, and its rounding there: see `derivative`."""

    here: Tensor
    noise: float

    @staticmethod
    def of(function: Callable[[Tensor], Tensor], unit: Tensor, size: float) -> Start:
        """Cost: 5 evaluations."""
        function = _nan_where_it_raises(function, unit)
        here = function(unit * 0)
        noise = LEAST_NOISE * float(here.norm())
        for fraction in NOISE_STEPS:
            step = unit * (fraction * size)
            gap = (function(step) - 2 * here + function(-step)).nan_to_num()
            noise = max(noise, float(gap.norm()) / 2)
        return Start(here, noise)


def _nan_where_it_raises(function: Callable[[Tensor], Tensor], unit: Tensor) -> Callable[[Tensor], Tensor]:
    """The function, NaN beside the point where it has no value: a matrix that is positive definite no more, say."""

    def at(move: Tensor) -> Tensor:
        try:
            return function(move)
        except Exception as error:
            if must_reach_user(error):
                raise
            if not move.any():
                raise
            return torch.full_like(function(unit * 0), float("nan"))

    return at


def derivative(
    function: Callable[[Tensor], Tensor], direction: Tensor, size: float, start: Start | None = None
) -> Product:
    """The derivative of a function at zero along a direction, by extrapolated central differences.

    size: of the point at which it is taken; steps are fractions of it. The rounding of the function is measured:
    between points that are 1e-9 and 3e-7 of the size apart, its second difference is rounding, and a smooth
    function's is not seen. Differences at the steps h and h / 2 give an estimate of their own error, and so do second
    differences, which are a fourth at half the step unless a kink of a piecewise linear net lies within it. Where
    there is one, smaller steps are taken, which may lie on this side of it; so they are where the function has no
    value at the ends of a step.
    Cost: 4 evaluations, and those of `Start`; up to 16 more beside a kink.
    """
    length = float(direction.norm())
    if length == 0:
        return Product(torch.zeros_like(function(direction)), 0.0)
    unit = direction / length
    function = _nan_where_it_raises(function, unit)
    here, noise = start or Start.of(function, unit, size)
    relative = noise / max(float(here.norm()), 1e-300)
    first = sum(relative < bound for bound in NOISE_OF_STEP)
    found: list[Product] = []
    for fraction in STEPS[first:]:
        step = fraction * size
        ends = [(function(unit * h), function(unit * -h), h) for h in (step, step / 2)]
        wide, narrow = ((ahead - behind) / (2 * h) for ahead, behind, h in ends)
        second, fourth = (ahead - 2 * here + behind for ahead, behind, _ in ends)
        disagreement = float((narrow - wide).norm()) + float((4 * fourth - second).norm()) / step
        value = (4 * narrow - wide) / 3
        found.append(Product(value * length, (disagreement + SAFETY * noise / step) * length, relative))
        if disagreement <= AGREED * float(value.norm()):
            break
    return min(found, key=lambda product: product.uncertainty if isfinite(product.uncertainty) else inf)
