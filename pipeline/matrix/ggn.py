"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.objective import Batch, Objective, Params, Product, Reference, linearized


@dataclass(frozen=True)
class GGN:
    """G = JᵀΛJ, J the derivative of the outputs by the weights, Λ the Hessian of the criterion by the outputs.

    It is the Hessian of the loss of the model linearized at the weights; positive semidefinite where the criterion is
    convex; of rank at most N·C, N (C - 1) for cross-entropy. Source: Schraudolph 2002, doi:10.1162/08997660260028683.
    """

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        return linearized(objective, params, batch), batch

    def product(self, reference: Reference, direction: Tensor, targets: Any, by_autograd: bool) -> Product:
        return gauss_newton(reference, direction, by_autograd)


def gauss_newton(reference: Reference, direction: Tensor, by_autograd: bool) -> Product:
    """JᵀΛJ v: J v by differences of the outputs, Λ by differences of the criterion's slopes, Jᵀ by a backward pass."""
    outputs = reference.outputs()
    if by_autograd:
        pushed = reference.push_by_autograd(direction)
        return Product(reference.pull(reference.curve_by_autograd(outputs, pushed)), 0.0)
    pushed, flat = reference.push(direction)
    curved, more = reference.curve(outputs, pushed)
    value = reference.pull(curved)
    # An error of J v passes through Λ and Jᵀ as J v itself does; so it is taken to stay as large beside the product.
    relative = flat.uncertainty / max(_norm(pushed), 1e-300) + more / max(_norm(curved), 1e-300)
    uncertainty = min(relative, 1.0) * float(value.norm()) + 1e-14 * float(direction.norm())
    return Product(value, uncertainty, flat.noise)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([value.double().norm() for value in tensors]).norm())
