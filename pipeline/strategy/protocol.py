"""What a strategy is, and what it has to do, known from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from pipeline.objective.batch import Batch
from pipeline.objective.objective import Objective, Params
from pipeline.strategy.block_filter import BlockFilter, everything
from pipeline.strategy.blocks import Block


class Cost(NamedTuple):
    """Derivatives along one direction that pass through the net, and the FLOP of the matrix products beside them."""

    num_tangents: int
    flop: float


class Strategy(Protocol):
    """Options of one way to compute the Hessian of `objective.loss` with respect to `params`."""

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, wanted: BlockFilter = everything
    ) -> Iterator[Block]:
        """Blocks that cover the lower triangle exactly once; rows and columns in the order of `params`.

        wanted: rectangles for which it says no may be left out; what is made has the same bits, whatever is left out.
        """
        ...

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        """What is to be done, from shapes alone: no derivative is taken."""
        ...

    def memory(self, num_parameters: int, itemsize: int) -> int:
        """Bytes of matrix entries held at once, the part of the peak memory that grows with P."""
        ...
