"""The strategy that a net and its size ask for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from typing import Any, NamedTuple

from pipeline.blocks import Block
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params
from pipeline.options import check_count
from pipeline.strategy.autograd import Autograd
from pipeline.strategy.cost import Cost
from pipeline.strategy.hvp import HVP
from pipeline.strategy.khatri_rao import KhatriRao
from pipeline.strategy.triangular import Triangular
from pipeline.strategy.wanted import Wanted, everything

log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """What is taken, its name in `conf/strategy/`, and why."""

    strategy: Any
    name: str
    reason: str


@dataclass(frozen=True)
class Auto:
    """`khatri_rao`; all rows in one pass for small nets; `triangular` where there is no forward-mode derivative.

    What is taken is said in one line of the log. The choice depends on the net, the loss and the batch alone, so that a
    run that is taken up again makes the same one.

    few_weights: up to so many, one pass of `hvp` is over before a net has been looked at. very_few_weights: up to so
    many, one pass of `autograd` is over before one of `hvp`.
    """

    few_weights: int = 400
    very_few_weights: int = 100

    def __post_init__(self) -> None:
        check_count("strategy.few_weights", self.few_weights)
        check_count("strategy.very_few_weights", self.very_few_weights)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, wanted: Wanted = everything
    ) -> Iterator[Block]:
        yield from self.start(objective, params, batch, wanted)[1]

    def start(
        self, objective: Objective, params: Params, batch: Batch, wanted: Wanted = everything
    ) -> tuple[Choice, Iterator[Block]]:
        """The choice, once its first block is there, and the blocks."""
        choice = self.choose(objective, params, batch)
        try:
            blocks = _begun(choice.strategy.blocks(objective, params, batch, wanted))
        except PipelineError as error:
            if "forward mode" not in str(error):
                raise
            choice = Choice(Triangular(), "triangular", str(error).partition(": use strategy=")[0])
            blocks = _begun(choice.strategy.blocks(objective, params, batch, wanted))
        _tell(choice.name, choice.reason)
        return choice, blocks

    def choose(self, objective: Objective, params: Params, batch: Batch) -> Choice:
        """What is tried first: by the number of weights and of tangents."""
        num_weights = Layout.of(params).num_parameters
        if num_weights <= self.very_few_weights:
            return Choice(Autograd(num_weights), "autograd", f"{num_weights} weights take one pass")
        if num_weights <= self.few_weights:
            return Choice(HVP(num_weights), "hvp", f"{num_weights} weights take one pass")
        cost = KhatriRao().cost(objective, params, batch)
        if cost.num_tangents < num_weights:
            reason = f"{cost.num_tangents:,} tangents in place of {num_weights:,}"
            return Choice(KhatriRao(), "khatri_rao", reason)
        return Choice(HVP(), "hvp", "no weight enters the model linearly")

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        cost: Cost = self.choose(objective, params, batch).strategy.cost(objective, params, batch)
        return cost

    def memory(self, num_parameters: int, itemsize: int) -> int:
        few = num_parameters <= max(self.few_weights, self.very_few_weights)
        return (HVP(num_parameters) if few else KhatriRao()).memory(num_parameters, itemsize)


@cache
def _tell(name: str, reason: str) -> None:
    """Say what is taken, once in a process."""
    log.info("strategy=auto takes %s: %s.", name, reason)


def _begun(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks, the first of them made now: what cannot be differentiated says so before one is handed out."""
    first = list(islice(blocks, 1))  # none, where none is wanted
    return chain(first, blocks)
