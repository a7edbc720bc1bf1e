"""The Hessian of the loss, and what is left of it without the generalised Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.matrix.ggn import gauss_newton
from pipeline.objective import Batch, DifferenceObjective, Objective, Params, Product, Reference, linearized


@dataclass(frozen=True)
class Hessian:
    """H[i, j] = d²L / dθ_i dθ_j, with L as the criterion reduces it (mean or sum over the samples)."""

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        return objective, batch

    def product(self, reference: Reference, direction: Tensor, targets: Any, by_autograd: bool) -> Product:
        """H v: the derivative of the gradient along v."""
        if by_autograd:
            return Product(reference.hessian_by_autograd(direction), 0.0)
        return reference.hessian(direction)


@dataclass(frozen=True)
class Residual:
    """H - G, the part of the Hessian that the curvature of the model makes: Σ over outputs of ∂L/∂f · d²f / dθ².

    Also called the functional Hessian (Singh et al. 2021, arXiv:2106.16225). It is indefinite, and zero where the
    outputs have no residual.
    """

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        return DifferenceObjective.of(objective, linearized(objective, params, batch)), batch

    def product(self, reference: Reference, direction: Tensor, targets: Any, by_autograd: bool) -> Product:
        """H v - G v."""
        whole = Hessian().product(reference, direction, targets, by_autograd)
        part = gauss_newton(reference, direction, by_autograd)
        # What is left may be far smaller than both: their rounding is its own.
        rounding = 1e-13 * float(whole.value.norm())
        noise = (
            max(whole.noise, part.noise)
            * float(whole.value.norm())
            / max(1e-300, float((whole.value - part.value).norm()))
        )
        return Product(whole.value - part.value, whole.uncertainty + part.uncertainty + rounding, noise)
