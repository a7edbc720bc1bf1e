"""Forward over reverse on chunks of unit vectors, each pair of parameters once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, vmap

from pipeline.blocks import Block
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params, flatten
from pipeline.options import check_count
from pipeline.strategy.cost import Cost
from pipeline.strategy.tangent import push
from pipeline.strategy.triangle import columns_of, unit_vectors
from pipeline.strategy.wanted import Wanted, everything

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HVP:
    """H[j, K] = d/dε ∇_K L(θ + ε e_j): the forward-mode derivative of the gradient, `chunk_size` unit vectors at once.

    The tangent enters at parameter j alone, so what runs before j is computed once and not once a tangent;
    the gradient is taken by the parameters K that the triangle needs alone (see `columns_of`). Up to `chunk_size`
    weights take one pass together. Cost: P
    tangents, each about one more gradient (Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147). Memory:
    chunk_size times the activations of the batch. Needs a forward-mode formula for the backward of every
    layer.
    """

    chunk_size: int = 128

    def __post_init__(self) -> None:
        check_count("strategy.chunk_size", self.chunk_size)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, wanted: Wanted = everything
    ) -> Iterator[Block]:
        num_parameters = Layout.of(params).num_parameters
        if num_parameters <= self.chunk_size:
            everywhere = slice(0, num_parameters)
            if not wanted(everywhere, everywhere):
                return
            try:
                yield _all_rows(objective, params, batch)
            except torch.OutOfMemoryError:
                log.warning("out of memory with all rows at once: going on parameter by parameter.")
            else:
                return
        for name, columns in columns_of(params).items():
            yield from rows_by_product(objective, params, batch, name, columns, self.chunk_size, wanted)

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
    values = vmap(lambda tangent: push(gradient, flat, tangent))(torch.eye(len(flat)).to(flat))
    return Block(everything, everything, values)


def rows_by_product(
    objective: Objective,
    params: Params,
    batch: Batch,
    name: str,
    columns: Sequence[str],
    chunk_size: int,
    wanted: Wanted = everything,
) -> Iterator[Block]:
    """The blocks (name, column) of the Hessian, for each of the columns, by one product for each row.

    When memory does not hold `chunk_size` of them at once, it goes on with half as many.
    """
    spans = Layout.of(params).slices()
    product = partial(_product, objective, params, batch, name, tuple(columns))
    start, size = 0, params[name].numel()
    while start < size:
        stop = min(start + chunk_size, size)
        rows = slice(spans[name].start + start, spans[name].start + stop)
        if not any(wanted(rows, spans[column]) for column in columns):
            start = stop
            continue
        try:
            products = vmap(product)(unit_vectors(params[name], start, stop))
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
            chunk_size = (stop - start) // 2
            log.warning("out of memory with %d rows at once: going on with %d.", stop - start, chunk_size)
            continue
        for column, values in products.items():
            yield Block(rows, spans[column], values.reshape(len(values), -1)).lower()
        start = stop


def _product(
    objective: Objective, params: Params, batch: Batch, name: str, columns: tuple[str, ...], tangent: Tensor
) -> Params:
    """d/dε of the gradient by `columns` when `name` moves along `tangent`."""

    def gradient(value: Tensor) -> Params:
        here = {**params, name: value}
        chosen = {column: here[column] for column in columns}
        result: Params = grad(lambda moved: objective.loss({**here, **moved}, batch))(chosen)
        return result

    return push(gradient, params[name], tangent)
