"""`torch.func.hessian` over `functional_call`, with `vmap` over the samples: the forum's answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, hessian, vmap
from torch.utils import _pytree as pytree

from pipeline.blocks import Block
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective import Batch, Inputs, Objective, Params, flatten


@dataclass(frozen=True)
class Func:
    """H = Σ_c w_c · torch.func.hessian(L_c): forward over reverse on all P unit vectors at once.

    The model sees one sample at a time under `vmap`, the criterion sees the chunk. For a mean loss w_c is the
    chunk's share of the samples, for a sum it is 1; which of the two holds is read off the gradients of
    chunks and batch, and where neither does (class weights, say) the batch is one chunk. Both triangles are
    computed. Cost: P tangents on every chunk. Memory: about four times P² numbers, and P times the
    activations of a chunk.
    """

    chunk_size: int = 32

    def __post_init__(self) -> None:
        if not isinstance(self.chunk_size, int) or self.chunk_size < 1:
            raise PipelineError(
                f"strategy.chunk_size is {self.chunk_size!r}: give a number of samples, 1 or more."
            )

    def blocks(self, objective: Objective, params: Params, batch: Batch) -> Iterator[Block]:
        by_sample = Objective(partial(_predict_each, objective), objective.criterion)
        _check_samples_are_independent(objective, by_sample, params, batch)
        spans = Layout.of(params).slices()
        total: dict[tuple[str, str], Tensor] = {}
        for weight, chunk in _weighted_chunks(objective, params, batch, self.chunk_size):
            nested = hessian(lambda p, chunk=chunk: by_sample.loss(p, chunk))(params)
            for row, column in _lower_pairs(params):
                values = nested[row].pop(column).reshape(params[row].numel(), params[column].numel())
                if (row, column) in total:
                    total[row, column].add_(values, alpha=weight)
                else:
                    total[row, column] = values.mul(weight)
        for row, column in _lower_pairs(params):
            yield Block(spans[row], spans[column], total.pop((row, column)))

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 4 * num_parameters**2 * itemsize


def _lower_pairs(params: Params) -> list[tuple[str, str]]:
    names = list(params)
    return [(row, column) for i, row in enumerate(names) for column in names[: i + 1]]


def _predict_each(objective: Objective, params: Params, inputs: Inputs) -> Any:
    def predict(sample: Inputs) -> Any:
        outputs = objective.predict(params, pytree.tree_map(lambda value: value.unsqueeze(0), sample))
        return pytree.tree_map(lambda value: value.squeeze(0), outputs)

    return vmap(predict)(inputs)


def _check_samples_are_independent(
    together: Objective, apart: Objective, params: Params, batch: Batch
) -> None:
    with torch.no_grad():
        expected, found = (
            pytree.tree_leaves(each.predict(params, batch.inputs)) for each in (together, apart)
        )
    for one, other in zip(expected, found, strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()), equal_nan=True):
            raise PipelineError(
                "the model's output for a sample depends on the other samples (BatchNorm in training mode?), "
                "and strategy=func takes samples one at a time: use model.eval(), or strategy=hvp."
            )


def _weighted_chunks(
    objective: Objective, params: Params, batch: Batch, size: int
) -> list[tuple[float, Batch]]:
    n = batch.num_samples
    chunks = [batch.chunk(start, min(start + size, n)) for start in range(0, n, size)]
    whole = _gradient(objective, params, batch)
    parts = [_gradient(objective, params, chunk) for chunk in chunks]
    for weights in ([chunk.num_samples / n for chunk in chunks], [1.0] * len(chunks)):
        weighted = [weight * part for weight, part in zip(weights, parts, strict=True)]
        scale = torch.stack([part.norm() for part in weighted]).sum()
        if torch.stack(weighted).sum(0).sub(whole).norm() <= 1e-4 * scale:
            return list(zip(weights, chunks, strict=True))
    return [(1.0, batch)]


def _gradient(objective: Objective, params: Params, batch: Batch) -> Tensor:
    return flatten(grad(lambda p: objective.loss(p, batch))(params))
