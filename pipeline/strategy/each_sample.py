"""The Hessians of all samples of a batch at once: forward over reverse on one sample, with `vmap` over them all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params, flatten
from pipeline.strategy.tangent import push

CHUNK_BYTES = 64 * 2**20  # of the rows that are made at once


def hessians_of_samples(objective: Objective, params: Params, batch: Batch) -> Tensor | None:
    """H_n of the loss of sample n alone, (N, P, P); None where the model cannot be run under `vmap`.

    Cost: P tangents through the batch. Memory: N·P² numbers, and CHUNK_BYTES of rows a few times.
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
            rows = _rows(objective, params, batch, flat, tangents)
        except torch.OutOfMemoryError:
            raise
        except (PipelineError, NotImplementedError, RuntimeError, ValueError, IndexError):
            return None
        square = rows[:, :, start:stop].tril()
        dense[:, start:stop, :start] = rows[:, :, :start]
        dense[:, start:stop, start:stop] = square + square.tril(-1).mT
        dense[:, :start, start:stop] = rows[:, :, :start].mT
    return dense


def _rows(objective: Objective, params: Params, batch: Batch, flat: Tensor, tangents: Tensor) -> Tensor:
    """(N, c, P)."""
    sizes = Layout.of(params).sizes

    def of_sample(sample: tuple[object, object]) -> Tensor:
        alone = Batch(*pytree.tree_map(_unsqueezed, sample))

        def gradient(value: Tensor) -> Tensor:
            result: Tensor = grad(lambda moved: objective.loss(unflatten(moved), alone))(value)
            return result

        rows: Tensor = vmap(lambda tangent: push(gradient, flat, tangent))(tangents)
        return rows

    def unflatten(value: Tensor) -> Params:
        parts = zip(params.items(), value.split(sizes), strict=True)
        return {name: part.reshape(like.shape) for (name, like), part in parts}

    result: Tensor = vmap(of_sample)(tuple(batch))
    return result


def _unsqueezed(value: object) -> object:
    return value.unsqueeze(0) if isinstance(value, Tensor) else value
