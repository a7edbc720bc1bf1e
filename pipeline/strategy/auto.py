"""The strategy that a net and its size ask for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice

from pipeline.errors import StrategyError
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params
from pipeline.strategy.attempt import Choice, Failures, blocks_by, refusal
from pipeline.strategy.autograd import Autograd
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.hvp import HVP, Counts, count_numbers, rows_at_once
from pipeline.strategy.khatri_rao import KhatriRao
from pipeline.strategy.khatri_rao.captured_net import uses_of
from pipeline.strategy.khatri_rao.linear_use import LinearUse
from pipeline.strategy.protocol import Cost
from pipeline.strategy.triangular import Triangular
from pipeline.validation import check_count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Auto:
    """`khatri_rao`; all rows in one pass for small nets; the next way, where one does not give the right matrix.

    The ways are tried in the order khatri_rao, hvp, triangular, autograd, after the one that is the fastest for a net
    of that size. A way does not do where the model cannot be differentiated so, where the matrix is not finite, and,
    for whoever verifies it, where it fails its certificate. What is taken is said in one line of the log. The choice
    depends on the net, the loss and the batch alone, so that a run that is taken up again makes the same one.

    few_weights: up to so many, one pass of `hvp` is over before a net has been looked at. very_few_weights: up to so
    many, one pass of `autograd` is over before one of `hvp`. some_weights: up to so many, `khatri_rao` has to need
    less work by the estimates of `work_by_units` and `work_by_rows`; above, fewer tangents than there are weights.
    megabytes: for the tangents of a pass of `hvp`.
    """

    few_weights: int = 400
    very_few_weights: int = 100
    some_weights: int = 10_000
    megabytes: int = 1024

    def __post_init__(self) -> None:
        check_count("strategy.few_weights", self.few_weights)
        check_count("strategy.very_few_weights", self.very_few_weights)
        check_count("strategy.some_weights", self.some_weights)
        check_count("strategy.megabytes", self.megabytes)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> Iterator[Block]:
        yield from self.start(objective, params, batch, block_filter)[1]

    def start(
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> tuple[Choice, Iterator[Block]]:
        """The first way whose first block can be made, and its blocks."""
        failures: list[tuple[str, StrategyError]] = []
        for choice in self.choices(objective, params, batch):
            try:
                blocks = _begun(blocks_by(choice, objective, params, batch, block_filter))
            except StrategyError as error:
                failures.append((choice.name, error))
                continue
            choice = with_reasons(choice, failures)
            log_choice(choice.name, choice.reason)
            return choice, blocks
        raise refusal(failures)

    def choices(self, objective: Objective, params: Params, batch: Batch) -> list[Choice]:
        """What is tried, one after the other."""
        num_weights = Layout.of(params).num_parameters
        first = self.choose(objective, params, batch)
        others = [
            Choice(KhatriRao(), "khatri_rao", "tangents go through units"),
            Choice(HVP(), "hvp", "rows by Hessian-vector products"),
            Choice(Triangular(ROWS_AT_ONCE), "triangular", "rows by two backward passes"),
            Choice(Autograd(), "autograd", "rows by two backward passes"),
        ]
        if num_weights <= self.few_weights:
            del others[0]  # one pass of another is over before a net has been looked at
        return [first, *(other for other in others if other.name != first.name)]

    def choose(self, objective: Objective, params: Params, batch: Batch) -> Choice:
        """What is tried first: by the number of weights, and by the work of units and of rows."""
        num_weights = Layout.of(params).num_parameters
        if num_weights <= self.very_few_weights:
            return Choice(Autograd(num_weights), "autograd", f"{num_weights} weights take one pass")
        if num_weights <= self.few_weights:
            return Choice(HVP(num_weights), "hvp", f"{num_weights} weights take one pass")
        counts = count_numbers(objective, params, batch)
        rows = rows_at_once(counts, params, self.megabytes)
        is_estimated = num_weights <= self.some_weights
        if is_estimated and num_weights * counts.numbers <= WORK_OF_A_CALL * counts.calls:
            reason = f"rows of {num_weights:,} weights are over before units are found"
            return Choice(HVP(rows), "hvp", reason)
        units = KhatriRao(tangents_per_product=rows)
        uses = uses_of(objective, params, batch, tuple(params))
        if not uses:
            return Choice(HVP(rows), "hvp", "no weight enters the model linearly")
        cost = units.cost_of(uses, params, batch)
        takes_rows = cost.num_tangents >= num_weights or (
            is_estimated and work_by_units(cost, uses, counts) >= work_by_rows(num_weights, uses, counts)
        )
        if takes_rows:
            reason = (
                f"units would need {cost.num_tangents:,} tangents and their products, rows {num_weights:,}"
            )
            return Choice(HVP(rows), "hvp", reason)
        return Choice(units, "khatri_rao", f"{cost.num_tangents:,} tangents in place of {num_weights:,}")

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        cost: Cost = self.choose(objective, params, batch).strategy.cost(objective, params, batch)
        return cost

    def memory(self, num_parameters: int, itemsize: int) -> int:
        few = num_parameters <= max(self.few_weights, self.very_few_weights)
        if few:
            return HVP(num_parameters).memory(num_parameters, itemsize)
        products = HVP(1).memory(num_parameters, itemsize) + self.megabytes * 2**20
        return max(products, KhatriRao().memory(num_parameters, itemsize))


def work_by_units(cost: Cost, uses: Sequence[LinearUse], counts: Counts) -> float:
    """Estimated work of `khatri_rao`, in numbers that one tangent moves in the model (about 4 ns each on one core).

    The tangents, the calls that the guards repeat, the blocks of pairs of parameters, and the matrix products.
    `scripts/benchmark_auto.py` shows both estimates beside the seconds that they stand for.
    """
    blocks = sum(len(use.names) for use in uses) ** 2 / 2
    return (
        1.5 * cost.num_tangents * counts.numbers
        + WORK_OF_A_CALL * counts.calls
        + 50_000 * blocks
        + cost.flop / 16
    )


def work_by_rows(num_weights: int, uses: Sequence[LinearUse], counts: Counts) -> float:
    """Estimated work of `hvp`, in the same unit: the numbers and the multiplications by weights, for each row."""
    products = sum(use.num_samples * use.num_positions * max(use.num_weights, use.num_units) for use in uses)
    return num_weights * (counts.numbers + products / 25)


def with_reasons(choice: Choice, failures: Failures) -> Choice:
    """The choice, with the reasons for which others were not taken."""
    if not failures:
        return choice
    reasons = "; ".join(f"{name} did not do ({error.why})" for name, error in failures)
    return choice._replace(reason=reasons)


WORK_OF_A_CALL = 80_000
ROWS_AT_ONCE = 64  # of two backward passes


@cache
def log_choice(name: str, reason: str) -> None:
    """Say what is taken, once in a process."""
    log.info("strategy=auto takes %s: %s.", name, reason)


def _begun(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks, the first of them made now: what cannot be differentiated says so before one is handed out."""
    first = list(islice(blocks, 1))  # none, where none is wanted
    return chain(first, blocks)
