"""Products that hold what the checkpoints of a model leave: it is computed again in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pipeline.objective import (
    Batch,
    DifferenceObjective,
    LinearizedModel,
    Objective,
    Params,
    flatten,
    leaves_of,
)
from pipeline.operator.protocol import Product
from pipeline.operator.reverse_over_reverse import ReverseOverReverse


@dataclass(frozen=True)
class Checkpointed:
    """H v = d/dε ∇L(θ + ε v) by dual numbers, through `torch.utils.checkpoint` as the model's own code has it.

    The objective is to be one that `Objective.checkpointed` gives. `torch.func` knows no checkpoints, so that the dual
    numbers are those of `torch.autograd.forward_ad`. Cost: about four gradients a vector. Memory: twice what enters the
    checkpoints and is computed between them, and four times what is computed inside one. Of a linearized model J v is
    taken by forward mode and Jᵀu by a backward pass through the checkpoints.
    """

    NAME: ClassVar[str] = "checkpointed forward over reverse"

    @property
    def name(self) -> str:
        return self.NAME

    def product(self, objective: Objective, params: Params, batch: Batch) -> Product:
        if isinstance(objective, DifferenceObjective):
            minuend, subtrahend = (
                self.product(one, params, batch) for one in (objective.minuend, objective.subtrahend)
            )
            return lambda vectors: minuend(vectors) - subtrahend(vectors)
        if isinstance(objective.predict, LinearizedModel):  # whose own graph holds next to nothing
            return ReverseOverReverse(is_kept=False).product(objective, params, batch)

        def product(vectors: Tensor) -> Tensor:
            columns = [_along(objective, params, batch, vector) for vector in vectors.unbind(1)]
            return torch.stack(columns, 1) if columns else vectors.clone()

        return product


def _along(objective: Objective, params: Params, batch: Batch, vector: Tensor) -> Tensor:
    """The derivative of the gradient along a vector, (P,)."""
    leaves = leaves_of(params)
    parts = vector.split([value.numel() for value in leaves.values()])
    with forward_ad.dual_level():
        duals = {
            name: forward_ad.make_dual(leaf, part.reshape(leaf.shape))
            for (name, leaf), part in zip(leaves.items(), parts, strict=True)
        }
        loss = forward_ad.unpack_dual(objective.loss(duals, batch)).primal
        if not loss.requires_grad:
            return torch.zeros_like(vector)
        gradient = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
        tangents = [forward_ad.unpack_dual(part).tangent for part in gradient]
        moved = {
            name: torch.zeros_like(leaf) if tangent is None else tangent.detach()
            for (name, leaf), tangent in zip(leaves.items(), tangents, strict=True)
        }
    return flatten(moved)
