"""`torch.func.hessian` over `functional_call`, with `vmap` over the samples: the forum's answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import hessian, vmap
from torch.utils import _pytree as pytree

from pipeline.blocks import Block
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective import Batch, Inputs, Objective, Params
from pipeline.options import check_count
from pipeline.strategy.chunks import weighted_chunks
from pipeline.strategy.cost import Cost
from pipeline.strategy.wanted import Wanted, everything


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
        check_count("strategy.chunk_size", self.chunk_size)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, wanted: Wanted = everything
    ) -> Iterator[Block]:
        by_sample = Objective(partial(_predict_each, objective), objective.criterion)
        _check_samples_are_independent(objective, by_sample, params, batch)
        spans = Layout.of(params).slices()
        pairs = [(row, column) for row, column in _lower_pairs(params) if wanted(spans[row], spans[column])]
        total: dict[tuple[str, str], Tensor] = {}
        for weight, chunk in weighted_chunks(objective, params, batch, self.chunk_size):
            if not pairs:
                return
            nested = hessian(lambda p, chunk=chunk: by_sample.loss(p, chunk))(params)
            for row, column in pairs:
                values = nested[row].pop(column).reshape(params[row].numel(), params[column].numel())
                if (row, column) in total:
                    total[row, column].add_(values, alpha=weight)
                else:
                    total[row, column] = values.mul(weight)
        for row, column in pairs:
            yield Block(spans[row], spans[column], total.pop((row, column)))

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        return Cost(Layout.of(params).num_parameters, 0.0)  # each on all samples, chunk after chunk

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
    refusal = "strategy=func takes samples one at a time: use model.eval(), or strategy=autograd."
    with torch.no_grad():
        expected = pytree.tree_leaves(together.predict(params, batch.inputs))
        try:
            found = pytree.tree_leaves(apart.predict(params, batch.inputs))
        except (RuntimeError, ValueError, IndexError) as error:
            line = str(error).partition("\n")[0]
            raise PipelineError(
                f"the model cannot take a sample alone, as BatchNorm in training mode cannot ({line}), and {refusal}"
            ) from error
    for one, other in zip(expected, found, strict=True):
        if not torch.allclose(
            one, other, rtol=1e-3, atol=1e-4 * float(one.abs().nan_to_num().max()), equal_nan=True
        ):
            raise PipelineError(
                "the model's output for a sample depends on the other samples (BatchNorm in training mode?), "
                f"and {refusal}"
            )
