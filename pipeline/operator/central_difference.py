"""Differences of gradients, for what autograd cannot differentiate twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.objective import Batch, Objective, Params, flatten
from pipeline.operator.protocol import Product

STEP = 1e-5  # of the norm of the weights, in float64: rounding and curvature of the gradient err about alike


@dataclass(frozen=True)
class CentralDifference:
    """H v ≈ (∇L(θ + h v) − ∇L(θ − h v)) / 2h, in the precision of the objective, which should be float64.

    Cost: two gradients a vector. Memory: that of one gradient. Relative error: some 1e-9 in float64 where the
    gradient is smooth; between the two points a kink of a piecewise linear net is averaged.
    """

    name: str = "central differences of the gradient"

    def product(self, objective: Objective, params: Params, batch: Batch) -> Product:
        sizes = [value.numel() for value in params.values()]
        scale = max(1e-3, float(flatten(params).double().norm()))
        relative = STEP if next(iter(params.values())).dtype == torch.float64 else 100 * STEP

        def at(move: Tensor) -> Tensor:
            parts = zip(params.items(), move.split(sizes), strict=True)
            return objective.gradient(
                {name: value + part.reshape(value.shape) for (name, value), part in parts}, batch
            )

        def column(vector: Tensor) -> Tensor:
            length = float(vector.double().norm())
            if length == 0:
                return torch.zeros_like(vector)
            step = relative * scale / length
            return (at(step * vector) - at(-step * vector)) / (2 * step)

        def product(vectors: Tensor) -> Tensor:
            columns = [column(vector) for vector in vectors.unbind(1)]
            return torch.stack(columns, 1) if columns else vectors.clone()

        return product
