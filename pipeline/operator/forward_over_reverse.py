"""The forward-mode derivative of the gradient, for several vectors in one pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from pipeline.errors import is_out_of_memory
from pipeline.objective import Batch, Objective, Params
from pipeline.operator.protocol import Product
from pipeline.strategy import directional_derivative

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForwardOverReverse:
    """H v = d/dε ∇L(θ + ε v), `columns_at_once` vectors in one pass by `vmap` (Pearlmutter 1994).

    The other order, reverse over forward mode, is not offered: through normalization layers PyTorch computes it wrong.
    Cost: about one and a
    half gradients a vector in a large block, three for a vector alone. Memory: columns_at_once times the activations
    of the batch, about four times. When that is too much, passes of half as many vectors are taken.
    """

    columns_at_once: int

    @property
    def name(self) -> str:
        return "forward over reverse"

    def product(self, objective: Objective, params: Params, batch: Batch) -> Product:
        def gradient(here: Params) -> Params:
            result: Params = grad(lambda moved: objective.loss(moved, batch))(here)
            return result

        def along(tangent: Params) -> Params:
            return directional_derivative(gradient, params, tangent)

        def product(vectors: Tensor) -> Tensor:
            blocks = list(self._blocks(along, params, vectors))
            return torch.cat(blocks, 1) if blocks else vectors.clone()

        return product

    def _blocks(self, along: object, params: Params, vectors: Tensor) -> Iterator[Tensor]:
        first, at_once = 0, self.columns_at_once
        while first < vectors.shape[1]:
            block = vectors[:, first : first + at_once]
            try:
                yield _moved(along, params, block)
            except (RuntimeError, MemoryError) as error:
                if block.shape[1] == 1 or not is_out_of_memory(error):
                    raise
                at_once = block.shape[1] // 2
                log.warning(
                    "out of memory with %d vectors at once: going on with %d.", block.shape[1], at_once
                )
                continue
            first += block.shape[1]


def _moved(along: object, params: Params, block: Tensor) -> Tensor:
    """The derivatives of the gradient along the columns of a block, (P, m)."""
    sizes = [value.numel() for value in params.values()]
    tangents = {
        name: part.reshape(-1, *value.shape)
        for (name, value), part in zip(params.items(), block.T.split(sizes, 1), strict=True)
    }
    if block.shape[1] == 1:
        found = {name: part[None] for name, part in along({n: t[0] for n, t in tangents.items()}).items()}  # type: ignore[operator]
    else:
        found = vmap(along)(tangents)  # type: ignore[arg-type]
    return torch.cat([part.reshape(block.shape[1], -1) for part in found.values()], 1).T
