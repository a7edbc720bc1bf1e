"""Forward over reverse on chunks of unit vectors, each pair of parameters once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode

from pipeline.errors import is_out_of_memory
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params, flatten, leaves_of
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.forward_mode import directional_derivative
from pipeline.strategy.parameter_pairs import columns_of
from pipeline.strategy.protocol import Cost
from pipeline.validation import check_count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HVP:
    """H[j, K] = d/dε ∇_K L(θ + ε e_j): the forward-mode derivative of the gradient, `chunk_size` unit vectors at
    once.

    The tangents of a pass enter at as few parameters j as make up a chunk, so what runs before them is computed once
    and not once a tangent; the gradient is taken by the parameters K that the triangle needs alone (see
    `columns_of`). Up to `chunk_size` weights take one pass together. Cost: P
    tangents, each about one more gradient (Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147). Memory:
    chunk_size times the activations of the batch. Needs a forward-mode formula for the backward of every
    layer.
    """

    chunk_size: int = 128

    def __post_init__(self) -> None:
        check_count("strategy.chunk_size", self.chunk_size)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> Iterator[Block]:
        num_parameters = Layout.of(params).num_parameters
        if num_parameters <= self.chunk_size:
            everywhere = slice(0, num_parameters)
            if not block_filter(everywhere, everywhere):
                return
            try:
                yield _all_rows(objective, params, batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("out of memory with all rows at once: going on parameter by parameter.")
            else:
                return
        yield from rows_by_products(
            objective, params, batch, columns_of(params), self.chunk_size, block_filter
        )

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        return Cost(Layout.of(params).num_parameters, 0.0)

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 2 * self.chunk_size * num_parameters * itemsize


def _all_rows(objective: Objective, params: Params, batch: Batch) -> Block:
    """The whole matrix from one pass: for so few rows, what a pass costs beside its numbers decides."""
    sizes = Layout.of(params).sizes
    flat = flatten(params)

    def gradient(value: Tensor) -> Tensor:
        result: Tensor = grad(lambda moved: objective.loss(unflatten(moved), batch))(value)
        return result

    def unflatten(value: Tensor) -> Params:
        parts = zip(params.items(), value.split(sizes), strict=True)
        return {name: part.reshape(like.shape) for (name, like), part in parts}

    everything = slice(0, len(flat))
    values = vmap(lambda tangent: directional_derivative(gradient, flat, tangent))(
        torch.eye(len(flat)).to(flat)
    )
    return Block(everything, everything, values)


class Rows(NamedTuple):
    """Entries start..stop-1 of a parameter, each of which moves along a tangent of its own."""

    name: str
    start: int
    stop: int

    @property
    def number(self) -> int:
        return self.stop - self.start


def rows_by_products(
    objective: Objective,
    params: Params,
    batch: Batch,
    columns: Mapping[str, Sequence[str]],
    chunk_size: int,
    block_filter: BlockFilter = all_blocks,
) -> Iterator[Block]:
    """The blocks (name, column) of the Hessian, for each parameter `name` and its columns, by one product for each
    row.

    columns: each list begins with the one before it. Small parameters share a pass, whose cost beside its numbers is
    that of a few gradients. When memory does not hold `chunk_size` rows at once, it goes on with half as many.
    """
    spans = Layout.of(params).slices()
    left = deque(Rows(name, 0, params[name].numel()) for name in columns)
    while left:
        together = _next(left, chunk_size)
        blocks = [
            (slice(spans[rows.name].start + rows.start, spans[rows.name].start + rows.stop), column, rows)
            for rows in together
            for column in columns[rows.name]
        ]
        if not any(block_filter(here, spans[column]) for here, column, _ in blocks):
            continue
        product = partial(_product, objective, params, batch, tuple(columns[together[-1].name]))
        try:
            products = vmap(product)(_tangents(params, together))
        except (RuntimeError, MemoryError) as error:
            number = sum(rows.number for rows in together)
            if number == 1 or not is_out_of_memory(error):
                raise
            left.extendleft(reversed(together))
            chunk_size = number // 2
            log.warning("out of memory with %d rows at once: going on with %d.", number, chunk_size)
            continue
        starts = dict(zip(together, accumulate((rows.number for rows in together), initial=0), strict=False))
        for here, column, rows in blocks:
            values = products[column][starts[rows] : starts[rows] + rows.number]
            yield Block(here, spans[column], values.reshape(rows.number, -1)).lower()


def _next(left: deque[Rows], most: int) -> list[Rows]:
    """The next rows, taken off those that are left: a part of a large parameter, or several small ones."""
    together, room = [left.popleft()], most
    if together[0].number > most:
        name, start, stop = together[0]
        left.appendleft(Rows(name, start + most, stop))
        return [Rows(name, start, start + most)]
    room -= together[0].number
    while left and left[0].number <= room:
        together.append(left.popleft())
        room -= together[-1].number
    return together


def _tangents(params: Params, together: Sequence[Rows]) -> Params:
    """Unit vectors one after another, each in the space of one parameter: (c, *shape) for every parameter that
    moves.
    """
    total, first = sum(rows.number for rows in together), 0
    tangents = {}
    for rows in together:
        units = params[rows.name].new_zeros(total, params[rows.name].numel())
        units[first : first + rows.number, rows.start : rows.stop].fill_diagonal_(1)
        tangents[rows.name] = units.reshape(total, *params[rows.name].shape)
        first += rows.number
    return tangents


def _product(
    objective: Objective, params: Params, batch: Batch, columns: tuple[str, ...], tangents: Params
) -> Params:
    """d/dε of the gradient by `columns` when some parameters move along their tangents."""

    def gradient(values: Params) -> Params:
        here = {**params, **values}
        chosen = {column: here[column] for column in columns}
        result: Params = grad(lambda moved: objective.loss({**here, **moved}, batch))(chosen)
        return result

    return directional_derivative(gradient, {name: params[name] for name in tangents}, tangents)


def rows_at_once(counts: Counts, params: Params, megabytes: int) -> int:
    """How many rows a pass may take: what the model computes on the batch is held about four times for each.

    On a CPU, more rows than fill its caches make a pass slower again: some 512, or up to 1,024 where the model
    computes little.
    """
    value = next(iter(params.values()))
    num_weights = Layout.of(params).num_parameters
    each = 4 * counts.numbers * value.element_size() + 2 * num_weights * value.element_size()
    most = min(num_weights, megabytes * 2**20 // each)
    if value.device.type == "cpu":
        most = min(most, 1024, max(512, CACHED_BYTES // (counts.numbers * value.element_size())))
    return max(LEAST_AT_ONCE, most)


class Counts(NamedTuple):
    """Of one run of the objective: floating-point numbers that functions returned, and calls of functions."""

    numbers: int
    calls: int


def count_numbers(objective: Objective, params: Params, batch: Batch) -> Counts:
    with _Counter() as counter:
        objective.loss(leaves_of(params), batch)
    return Counts(counter.numbers, counter.calls)


class _Counter(TorchFunctionMode):
    numbers = 1
    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(result, Tensor) and result.is_floating_point():
            self.numbers += result.numel()
        return result


LEAST_AT_ONCE = 32
CACHED_BYTES = 28 * 2**20
