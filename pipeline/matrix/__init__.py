"""Which matrix: each is the Hessian of a transformed objective, so every strategy computes every one of them."""

from __future__ import annotations

from typing import Protocol

from pipeline.matrix.empirical_fisher import EmpiricalFisher
from pipeline.matrix.fisher import Fisher
from pipeline.matrix.ggn import GGN
from pipeline.matrix.hessian import Hessian, Residual
from pipeline.objective import Batch, Objective, Params


class Matrix(Protocol):
    """A symmetric (P, P) matrix of second derivatives at the weights `params` on one batch."""

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        """The objective whose Hessian at `params` is this matrix, and the batch that it is taken on."""
        ...


MATRICES: dict[str, type[Matrix]] = {
    "hessian": Hessian,
    "ggn": GGN,
    "fisher": Fisher,
    "empirical_fisher": EmpiricalFisher,
    "residual": Residual,
}

__all__ = ["GGN", "MATRICES", "EmpiricalFisher", "Fisher", "Hessian", "Matrix", "Residual"]
