"""What a strategy is, and what it has to do, known from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from pipeline.objective import Batch, Objective, Params
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block


class Cost(NamedTuple):
    """Derivatives along one direction that pass through the net, and the FLOP of the matrix products beside them."""

    num_tangents: int
    flop: float


class Strategy(Protocol):
    """Options of one way to compute the Hessian of `objective.loss` with respect to `params`."""

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> Iterator[Block]:
        """Blocks that cover the lower triangle exactly once; rows and columns in the order of `params`.

        block_filter: rectangles for which it says no may be left out; what is made has the same bits, whatever is
        left out.
        """
        ...

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        """What is to be done, from shapes alone: no derivative is taken."""
        ...

    def memory(self, num_parameters: int, itemsize: int) -> int:
        """Bytes of matrix entries held at once, the part of the peak memory that grows with P."""
        ...


@runtime_checkable
class Approximate(Protocol):
    """What a strategy has besides, if its matrix is not exact to rounding (finite differences, for example)."""

    def tolerance(self, dtype: torch.dtype) -> float:
        """The largest error ‖H̃ − H‖ / ‖H‖, in the Frobenius norm, of a matrix H̃ computed in this dtype.

        The certificate allows this error in addition to rounding, and the tests do, too.
        """
        ...


def tolerance_of(strategy: Strategy, dtype: torch.dtype) -> float:
    """The error that a strategy declares, relative to the matrix; 0 for one that is exact to rounding."""
    return strategy.tolerance(dtype) if isinstance(strategy, Approximate) else 0.0
