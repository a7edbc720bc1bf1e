"""A strategy that is not exact to rounding, as somebody else would write it: no part of the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cbrt

import torch
from torch import Tensor

from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.protocol import Cost
from pipeline.validation import check_bool, check_number


@dataclass(frozen=True)
class CentralDifferences:
    """H[j] = (∇L(θ + h e_j) − ∇L(θ − h e_j)) / 2h, a row for each weight: 2 P gradients.

    step: h, in units of ε^⅓, at which rounding and truncation are of one size. extrapolate: to h = 0, from h and h/2.
    """

    step: float = 1.0
    extrapolate: bool = False

    def __post_init__(self) -> None:
        check_number("strategy.step", self.step, above=0)
        check_bool("strategy.extrapolate", self.extrapolate)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> Iterator[Block]:
        moved = {name: value.detach().clone() for name, value in params.items()}
        row = 0
        for value in moved.values():
            for entry in value.view(-1).split(1):
                rows, cols = slice(row, row + 1), slice(0, row + 1)
                if block_filter(rows, cols):
                    h = self._step(entry.dtype)
                    values = _difference(objective, moved, batch, entry, h)
                    if self.extrapolate:
                        values = (4 * _difference(objective, moved, batch, entry, h / 2) - values) / 3
                    yield Block(rows, cols, values[None, cols])
                row += 1

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        return Cost((4 if self.extrapolate else 2) * Layout.of(params).num_parameters, 0.0)

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 4 * num_parameters * itemsize

    def tolerance(self, dtype: torch.dtype) -> float:
        h = self._step(dtype)
        return 100 * (h**2 + float(torch.finfo(dtype).eps) / h)

    def _step(self, dtype: torch.dtype) -> float:
        return self.step * cbrt(torch.finfo(dtype).eps)


def _difference(objective: Objective, moved: Params, batch: Batch, entry: Tensor, h: float) -> Tensor:
    """The difference quotient when `entry`, a view of one weight in `moved`, moves by h to either side."""
    here, ends = entry.clone(), []
    for end in (here + h, here - h):
        entry.copy_(end)
        ends.append((objective.gradient(moved, batch), end))
    entry.copy_(here)
    (above, high), (below, low) = ends
    return (above - below) / (high - low)
