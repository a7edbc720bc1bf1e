"""Row by row through `torch.autograd.grad`: the program that everyone writes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.blocks import Block
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params, flatten
from pipeline.strategy.cost import Cost


@dataclass(frozen=True)
class Autograd:
    """Reverse over reverse: the gradient with its graph, then one reverse pass through that graph for each row.

    Both triangles are computed. Cost: P reverse passes through the graph of the gradient. Memory: that graph,
    and one row. Supports every layer that can be differentiated twice in reverse mode.
    """

    def blocks(self, objective: Objective, params: Params, batch: Batch) -> Iterator[Block]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        weights = tuple(leaves.values())
        loss = objective.loss(leaves, batch)
        parts = derivatives(loss, weights, create_graph=True)
        gradient = flatten(dict(zip(leaves, parts, strict=True)))
        for i in range(len(gradient)):
            row = derivatives(gradient[i], weights)
            yield Block(
                slice(i, i + 1), slice(0, len(gradient)), flatten(dict(zip(leaves, row, strict=True)))[None]
            )

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        return Cost(Layout.of(params).num_parameters, 0.0)

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 2 * num_parameters * itemsize


def derivatives(
    value: Tensor, by: Sequence[Tensor], direction: Tensor | None = None, create_graph: bool = False
) -> Sequence[Tensor]:
    """The derivative of a value (or of its component along `direction`), zeros where it does not depend on a tensor."""
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in by]
    return torch.autograd.grad(
        value, by, direction, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
