"""What the matrix of a batch will take, before any of it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params
from pipeline.strategy import Strategy, choices_of, directional_derivative
from pipeline.system import available_memory, format_bytes
from pipeline.training import clock

NUM_TRIED = 16  # tangents that are pushed through the net to see how long one takes
PATIENCE = 1.0  # seconds after which nothing is tried once more
ROOM_TO_CHECK = 10**8  # bytes under which nobody asks whether they are there


@dataclass(frozen=True)
class Plan:
    """Known from shapes alone: the weights P and samples N, the tangents that pass through the net, and the FLOP of the
    matrix products beside them; bytes of the (P, P) matrix and of what the strategy holds besides.

    strategy: the name of what `auto` would take first, None for another strategy.
    """

    num_parameters: int
    num_samples: int
    num_tangents: int
    flop: float
    matrix_bytes: int
    strategy_bytes: int
    strategy: str | None = None

    @staticmethod
    def of(strategy: Strategy, objective: Objective, params: Params, batch: Batch) -> Plan:
        """The plan for one batch. Cost: one or two forward passes."""
        num_parameters = Layout.of(params).num_parameters
        itemsize = next(iter(params.values())).element_size()
        strategy, name, reason = choices_of(strategy, objective, params, batch)[0]
        cost = strategy.cost(objective, params, batch)
        held = strategy.memory(num_parameters, itemsize)
        size = num_parameters**2 * itemsize
        return Plan(
            num_parameters,
            batch.num_samples,
            cost.num_tangents,
            cost.flop,
            size,
            held,
            name if reason else None,
        )

    @staticmethod
    def together(plans: Sequence[Plan]) -> Plan:
        """Of several matrices on one batch, one after the other."""
        first = plans[0]
        return Plan(
            sum(plan.num_parameters for plan in plans),
            first.num_samples,
            sum(plan.num_tangents for plan in plans),
            sum(plan.flop for plan in plans),
            sum(plan.matrix_bytes for plan in plans),
            max(plan.strategy_bytes for plan in plans),
            first.strategy,
        )

    def __str__(self) -> str:
        flop = f" and {in_units(self.flop, 'FLOP')}" if self.flop else ""
        return f"{self.num_tangents:,} tangents{flop} a batch of {self.num_samples:,} samples"


def check_room(num_bytes: int, num_parameters: int, place: torch.device) -> None:
    """Refuse a dense matrix that does not fit, before it is computed.

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    if num_bytes < ROOM_TO_CHECK:
        return
    there = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else available_memory()
    if num_bytes > there:
        raise PipelineError(
            f"the dense Hessian of P = {num_parameters:,} weights needs {format_bytes(num_bytes)} of memory, "
            f"{format_bytes(there)} are free on {place}: choose fewer weights (parameters=...), "
            "layer_hessians, dtype=torch.float32, or python -m pipeline.run, which writes it to disk as it comes."
        )


def expected_seconds(plan: Plan, objective: Objective, params: Params, batch: Batch) -> float:
    """For the tangents and products of one batch, from how long a few and a small product take here and now."""
    per_tangent = _seconds_per_tangent(objective, params, batch)
    products = plan.flop / gemm_rate(next(iter(params.values()))) if plan.flop else 0.0
    return plan.num_tangents * per_tangent + products


def gemm_rate(like: Tensor, size: int = 768) -> float:
    """FLOP a second of products of square matrices of this dtype, on this device."""
    one, other = torch.randn(2, size, size, dtype=like.dtype, device=like.device)
    return 2 * size**3 / fastest(lambda: one @ other, like.device)


def in_units(number: float, unit: str) -> str:
    """A count in the unit that a person would use: 7.2 GFLOP."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} P{unit}"


def _seconds_per_tangent(objective: Objective, params: Params, batch: Batch) -> float:
    generator = torch.Generator().manual_seed(0)
    tangents = {
        name: torch.randn(NUM_TRIED, *value.shape, generator=generator).to(value)
        for name, value in params.items()
    }

    def gradient(here: Params) -> Params:
        result: Params = grad(lambda p: objective.loss(p, batch))(here)
        return result

    place = next(iter(params.values())).device
    try:
        return (
            fastest(lambda: vmap(lambda t: directional_derivative(gradient, params, t))(tangents), place)
            / NUM_TRIED
        )
    except PipelineError:  # no forward mode: two reverse passes instead, each about twice a forward pass
        return 2 * fastest(lambda: objective.gradient(params, batch), place)


def fastest(run: Callable[[], object], place: torch.device, times: int = 3) -> float:
    """Seconds of the fastest of a few, after one in which libraries start."""
    began = clock()
    seconds: list[float] = []
    run()
    for _ in range(times):
        if seconds and clock() - began > PATIENCE:
            break
        start = clock()
        run()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        seconds.append(clock() - start)
    return min(seconds)
