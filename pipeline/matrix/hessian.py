"""The Hessian of the loss, and what is left of it without the generalised Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.linearised import Difference, linearised
from pipeline.objective import Batch, Objective, Params


@dataclass(frozen=True)
class Hessian:
    """H[i, j] = d²L / dθ_i dθ_j, with L as the criterion reduces it (mean or sum over the samples)."""

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        return objective, batch


@dataclass(frozen=True)
class Residual:
    """H - G, the part of the Hessian that the curvature of the model makes: Σ over outputs of ∂L/∂f · d²f / dθ².

    Also called the functional Hessian (Singh et al. 2021, arXiv:2106.16225). It is indefinite, and zero where the
    outputs have no residual.
    """

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        return Difference.of(objective, linearised(objective, params)), batch
