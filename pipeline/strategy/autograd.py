"""Row by row through `torch.autograd.grad`: the program that everyone writes first; or many rows at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pipeline.errors import first_line, is_out_of_memory
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params, flatten, leaves_of
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.parameter_pairs import unit_vectors
from pipeline.strategy.protocol import Cost
from pipeline.validation import check_count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Autograd:
    """Reverse over reverse: the gradient with its graph, then one reverse pass through that graph for each row.

    Both triangles are computed. Cost: P reverse passes through the graph of the gradient. Memory: that graph,
    and one row. Supports every layer that can be differentiated twice in reverse mode.

    rows_at_once: with more than one, a pass takes so many rows, through `vmap`, at so many times the memory.
    """

    rows_at_once: int = 1

    def __post_init__(self) -> None:
        check_count("strategy.rows_at_once", self.rows_at_once)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> Iterator[Block]:
        leaves = leaves_of(params)
        weights = tuple(leaves.values())
        loss = objective.loss(leaves, batch)
        parts = derivatives(loss, weights, create_graph=True)
        gradient = flatten(dict(zip(leaves, parts, strict=True)))
        columns = slice(0, len(gradient))
        for start in range(0, len(gradient), self.rows_at_once):
            rows = slice(start, min(start + self.rows_at_once, len(gradient)))
            if block_filter(rows, columns):
                yield Block(rows, columns, _rows(gradient, weights, rows))

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        return Cost(Layout.of(params).num_parameters, 0.0)

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 2 * self.rows_at_once * num_parameters * itemsize


def _rows(gradient: Tensor, weights: Sequence[Tensor], rows: slice) -> Tensor:
    """The rows of the Hessian, (rows, P)."""
    num_rows = rows.stop - rows.start
    if num_rows > 1 and gradient.requires_grad:
        try:
            return _at_once(gradient, weights, unit_vectors(gradient, rows.start, rows.stop))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            _tell(first_line(error))
    each = [derivatives(gradient[i], weights) for i in range(rows.start, rows.stop)]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in each])


def _at_once(gradient: Tensor, weights: Sequence[Tensor], directions: Tensor) -> Tensor:
    parts = torch.autograd.grad(
        gradient, weights, directions, retain_graph=True, is_grads_batched=True, allow_unused=True
    )
    n = len(directions)
    rows = [
        value.new_zeros(n, value.numel()) if part is None else part.reshape(n, -1)
        for part, value in zip(parts, weights, strict=True)
    ]
    return torch.cat(rows, 1)


@cache
def _tell(reason: str) -> None:
    log.warning("PyTorch cannot differentiate several rows at once here (%s): going on row by row.", reason)


def derivatives(
    value: Tensor, by: Sequence[Tensor], direction: Tensor | None = None, create_graph: bool = False
) -> Sequence[Tensor]:
    """The derivative of a value (or of its component along `direction`), zeros where it does not depend on a tensor."""
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in by]
    return torch.autograd.grad(
        value, by, direction, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
