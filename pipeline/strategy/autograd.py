"""Row by row through `torch.autograd.grad`: the program that everyone writes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.blocks import Block
from pipeline.objective import Batch, Objective, Params, flatten


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
        parts = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        gradient = flatten(dict(zip(leaves, parts, strict=True)))
        for i in range(len(gradient)):
            row = torch.autograd.grad(gradient[i], weights, retain_graph=True, materialize_grads=True)
            yield Block(
                slice(i, i + 1), slice(0, len(gradient)), flatten(dict(zip(leaves, row, strict=True)))[None]
            )

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 2 * num_parameters * itemsize
