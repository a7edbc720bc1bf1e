"""The Hessians of all samples of a batch at once: forward over reverse on one sample, with `vmap` over them all."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.func import grad, vmap

from pipeline.errors import is_out_of_memory
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params, Tree, flatten
from pipeline.strategy.forward_mode import directional_derivative

CHUNK_BYTES = 64 * 2**20  # of the rows that are made at once


def hessians_of_samples(
    objective: Objective, params: Params, batch: Batch, squares: bool = True
) -> Tensor | None:
    """H_n of the loss of sample n alone, (N, P, P); None where the model cannot be run under `vmap`.

    squares: see `Batch.chunk`. Cost: P tangents through the batch. Memory: N·P² numbers, and CHUNK_BYTES of rows a
    few times.
    """
    flat, layout = flatten(params), Layout.of(params)
    N, P = batch.num_samples, layout.num_parameters
    dense = flat.new_empty(N, P, P)
    size = max(1, min(P, CHUNK_BYTES // (N * P * flat.element_size())))
    for start in range(0, P, size):
        stop = min(start + size, P)
        tangents = flat.new_zeros(stop - start, P)
        tangents[:, start:stop].fill_diagonal_(1)
        try:
            rows = _rows(objective, params, batch, squares, flat, tangents)
        except Exception as error:  # a layer may raise anything under `vmap`
            if is_out_of_memory(error):
                raise
            return None
        square = rows[:, :, start:stop].tril()
        dense[:, start:stop, :start] = rows[:, :, :start]
        dense[:, start:stop, start:stop] = square + square.tril(-1).mT
        dense[:, :start, start:stop] = rows[:, :, :start].mT
    return dense


def _rows(
    objective: Objective, params: Params, batch: Batch, squares: bool, flat: Tensor, tangents: Tensor
) -> Tensor:
    """(N, c, P)."""
    sizes = Layout.of(params).sizes
    tree = Tree.of(tuple(batch), every=True)
    counted = batch.counted(squares)

    def of_sample(*sample: Any) -> Tensor:
        alone = Batch(*tree.like(sample))

        def gradient(value: Tensor) -> Tensor:
            result: Tensor = grad(lambda moved: objective.loss(unflatten(moved), alone))(value)
            return result

        rows: Tensor = vmap(lambda tangent: directional_derivative(gradient, flat, tangent))(tangents)
        return rows

    def unflatten(value: Tensor) -> Params:
        parts = zip(params.items(), value.split(sizes), strict=True)
        return {name: part.reshape(like.shape) for (name, like), part in parts}

    n = batch.num_samples
    each = [
        value.unflatten(0, (n, -1)) if take else value
        for value, take in zip(tree.tensors, counted, strict=True)
    ]
    result: Tensor = vmap(of_sample, in_dims=tuple(0 if take else None for take in counted))(*each)
    return result
