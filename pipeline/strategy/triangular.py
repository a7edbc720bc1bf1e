"""Row by row through `torch.autograd.grad`, but each pair of parameters once: the forum's question, answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params, leaves_of
from pipeline.strategy.autograd import derivatives
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.parameter_pairs import columns_of, rows_of, unit_vectors
from pipeline.strategy.protocol import Cost
from pipeline.validation import check_count

ROWS_PER_BLOCK = 64


@dataclass(frozen=True)
class Triangular:
    """Reverse over reverse, a row at a time, and each row differentiated only by what its part of the triangle needs.

    Why `grad(g[i], flat_params[i:])` gives None. `flat_params[i:]` is a new tensor, made by slicing after the
    loss was computed. The loss was computed from `flat_params` (or from what it was concatenated from), the
    slice is a leaf's child that nothing was computed from, so there is no path from g[i] back to it. Autograd
    can differentiate only by
    tensors that the loss was really computed from: here, the parameters. So the triangle is taken at their
        level: the rows of parameter j are differentiated by j and by those parameters that are larger than j,
        which leaves out all backward work that only the other parameters need (see `columns_of`).

    The row is selected by a unit vector as `grad_outputs` of its own parameter's gradient, so that nothing of
    length P is sliced, padded or concatenated. Cost: at most P reverse passes. Memory: the graph of the
    gradient, and 64 rows of the widest parameter.

    rows_at_once: with more than one, a pass takes so many rows, through `vmap`, at so many times the memory.
    """

    rows_at_once: int = 1

    def __post_init__(self) -> None:
        check_count("strategy.rows_at_once", self.rows_at_once)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> Iterator[Block]:
        layout = Layout.of(params)
        spans = layout.slices()
        leaves = leaves_of(params)
        loss = objective.loss(leaves, batch)
        weights = tuple(leaves.values())
        gradients = derivatives(loss, weights, create_graph=True)
        gradient_of = dict(zip(leaves, gradients, strict=True))
        for name, columns in columns_of(params).items():
            for rows in rows_of(layout, name, ROWS_PER_BLOCK):
                if not any(block_filter(rows, spans[column]) for column in columns):
                    continue
                first = rows.start - spans[name].start
                units = unit_vectors(params[name], first, first + rows.stop - rows.start)
                needed = [leaves[column] for column in columns]
                for column, values in zip(
                    columns, _products(gradient_of[name], needed, units, self.rows_at_once), strict=True
                ):
                    yield Block(rows, spans[column], values.reshape(len(units), -1)).lower()

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        return Cost(Layout.of(params).num_parameters, 0.0)

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 2 * ROWS_PER_BLOCK * num_parameters * itemsize


def _products(gradient: Tensor, by: Sequence[Tensor], units: Tensor, rows_at_once: int) -> list[Tensor]:
    """The derivatives of the gradient along each unit vector, (rows, *shape) for each of the tensors."""
    if rows_at_once > 1 and gradient.requires_grad:
        try:
            parts = [
                torch.autograd.grad(
                    gradient, by, some, retain_graph=True, is_grads_batched=True, allow_unused=True
                )
                for some in units.split(rows_at_once)
            ]
        except RuntimeError:  # a layer without a batching rule, or memory that ran out
            pass
        else:
            counts = [len(some) for some in units.split(rows_at_once)]
            filled = [
                [
                    value.new_zeros(n, *value.shape) if part is None else part
                    for part, value in zip(row, by, strict=True)
                ]
                for n, row in zip(counts, parts, strict=True)
            ]
            return [torch.cat(values) for values in zip(*filled, strict=True)]
    each = [derivatives(gradient, by, unit) for unit in units]
    return [torch.stack(values) for values in zip(*each, strict=True)]
