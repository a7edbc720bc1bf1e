"""Which matrix: each is the Hessian of a transformed objective, so every strategy computes every one of them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from pipeline.matrix.empirical_fisher import EmpiricalFisher
from pipeline.matrix.fisher import Fisher
from pipeline.matrix.ggn import GGN
from pipeline.matrix.hessian import Hessian, Residual
from pipeline.objective import Batch, Objective, Params, Product, Reference


class Matrix(Protocol):
    """A symmetric (P, P) matrix of second derivatives at the weights `params` on one batch."""

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        """The objective whose Hessian at `params` is this matrix, and the batch that it is taken on."""
        ...

    def product(self, reference: Reference, direction: Tensor, targets: Any, by_autograd: bool) -> Product:
        """The product of the matrix and a direction, (P,), as the certificate takes it, on the user's own module.

        targets: of the batch that `problem` gave. by_autograd: by two backward passes where one and a difference
        quotient would do.
        """
        ...


MATRICES: dict[str, type[Matrix]] = {
    "hessian": Hessian,
    "ggn": GGN,
    "fisher": Fisher,
    "empirical_fisher": EmpiricalFisher,
    "residual": Residual,
}
