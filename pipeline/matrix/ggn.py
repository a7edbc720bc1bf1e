"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.linearised import linearised
from pipeline.objective import Batch, Objective, Params


@dataclass(frozen=True)
class GGN:
    """G = JᵀΛJ, J the derivative of the outputs by the weights, Λ the Hessian of the criterion by the outputs.

    It is the Hessian of the loss of the model linearised at the weights; positive semidefinite where the criterion is
    convex; of rank at most N·C, N (C - 1) for cross-entropy. Source: Schraudolph 2002, doi:10.1162/08997660260028683.
    """

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        return linearised(objective, params), batch
