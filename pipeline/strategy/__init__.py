"""How the matrix is computed: each strategy is a generator of blocks of the lower triangle.

To add one: a file here with a frozen dataclass that has `blocks`, `cost` and `memory`, its name in `STRATEGIES`, and
`conf/strategy/<name>.yaml`. The tests find it there and hold it to every case.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pipeline.objective.batch import Batch
from pipeline.objective.objective import Objective, Params
from pipeline.strategy.auto import Auto
from pipeline.strategy.autograd import Autograd
from pipeline.strategy.block_filter import BlockFilter, everything
from pipeline.strategy.blocks import Block
from pipeline.strategy.cost import Cost
from pipeline.strategy.func import Func
from pipeline.strategy.hvp import HVP
from pipeline.strategy.khatri_rao import KhatriRao
from pipeline.strategy.triangular import Triangular


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


STRATEGIES: dict[str, type[Strategy]] = {
    "auto": Auto,
    "autograd": Autograd,
    "triangular": Triangular,
    "func": Func,
    "hvp": HVP,
    "khatri_rao": KhatriRao,
}

__all__ = [
    "HVP",
    "STRATEGIES",
    "Auto",
    "Autograd",
    "BlockFilter",
    "Cost",
    "Func",
    "KhatriRao",
    "Strategy",
    "Triangular",
    "everything",
]
