"""Which matrix: each is the Hessian of a transformed objective, so every strategy computes every one of them."""

from __future__ import annotations

from typing import Protocol

from pipeline.matrix.hessian import Hessian
from pipeline.objective import Batch, Objective, Params


class Matrix(Protocol):
    """A symmetric (P, P) matrix of second derivatives at the weights `params` on one batch."""

    def objective(self, objective: Objective, params: Params, batch: Batch) -> Objective:
        """The objective whose Hessian at `params` is this matrix."""
        ...


MATRICES: dict[str, type[Matrix]] = {"hessian": Hessian}

__all__ = ["MATRICES", "Hessian", "Matrix"]
