"""What a way to compute products with the Hessian of an objective is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pipeline.objective import Batch, Objective, Params


class Product(Protocol):
    """V ↦ H V, (P, m) to (P, m), for the Hessian H of the objective on one batch at one point."""

    def __call__(self, vectors: Tensor, /) -> Tensor: ...


class Way(Protocol):
    """A way to differentiate, under the name that the log and results give it."""

    @property
    def name(self) -> str: ...

    def product(self, objective: Objective, params: Params, batch: Batch) -> Product: ...


class SumOverBatches(Protocol):
    """V ↦ Σ_b w_b H_b V, (P, m) to (P, m), for the weights w_b with which batches make up the loss."""

    def __call__(self, vectors: Tensor, /) -> Tensor: ...

    def loss_and_gradient(self) -> tuple[float, Tensor]: ...
