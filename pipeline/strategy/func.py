"""`torch.func.hessian` over `functional_call`, with `vmap` over the samples: the forum's answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.func import hessian, vmap

from pipeline.errors import StrategyError, first_line, must_reach_user
from pipeline.layout import Layout
from pipeline.objective import (
    Batch,
    DifferenceObjective,
    Inputs,
    LinearizedModel,
    LinearizedOutputs,
    Objective,
    Params,
    Tree,
    are_alike,
    leaves_of,
)
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.loss_chunks import weighted_chunks
from pipeline.strategy.protocol import Cost
from pipeline.validation import check_count


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
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> Iterator[Block]:
        by_sample = _samples_apart(objective, params, batch)
        spans = Layout.of(params).slices()
        pairs = [
            (row, column) for row, column in _lower_pairs(params) if block_filter(spans[row], spans[column])
        ]
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


def _one_by_one(objective: Objective, batch: Batch, squares: bool) -> Objective:
    """The objective whose model sees one sample at a time; a linearized model stays, since it is one linear map."""
    if isinstance(objective, DifferenceObjective):
        return DifferenceObjective.of(_one_by_one(objective.minuend, batch, squares), objective.subtrahend)
    if isinstance(objective.predict, LinearizedModel):
        return objective
    number = len(Tree.of(batch.inputs, every=True).tensors)
    dims = [0 if each else None for each in batch.counted(squares)[:number]]
    return replace(objective, predict=partial(_predict_each, objective, dims))


def _predict_each(objective: Objective, dims: list[int | None], params: Params, inputs: Inputs) -> Any:
    given = Tree.of(inputs, every=True)
    trees: list[Tree] = []

    def predict(*sample: Any) -> Any:
        alone = [
            value if dim is None else value.unsqueeze(0) for value, dim in zip(sample, dims, strict=True)
        ]
        tree = Tree.of(objective.predict(params, given.like(alone)), every=True)
        trees.append(tree)
        return tuple(value.squeeze(0) for value in tree.tensors)

    if all(dim is None for dim in dims):
        return objective.predict(params, inputs)
    found = vmap(predict, in_dims=tuple(dims))(*given.tensors)
    return trees[0].like(found)


def _samples_apart(objective: Objective, params: Params, batch: Batch) -> Objective:
    """The objective whose model sees one sample at a time.

    Raises:
        StrategyError: the model cannot do so, or gives other outputs then.
    """
    remedy = "strategy=func takes samples one at a time: use model.eval(), or strategy=autograd"
    reason = "BatchNorm in training mode cannot"
    expected = _tensors(objective, params, batch)
    for squares in (True, False):
        apart = _one_by_one(objective, batch, squares)
        try:
            found = _tensors(apart, params, batch)
        except Exception as error:  # a model may raise anything where it is given a sample alone
            if must_reach_user(error):
                raise
            reason = f"as {reason} ({first_line(error)})"
            continue
        if len(found) == len(expected) and all(
            one.shape == other.shape and are_alike(one, other)
            for one, other in zip(expected, found, strict=True)
        ):
            return apart
        raise StrategyError(
            "the model's output for a sample depends on the other samples (BatchNorm in training mode?)",
            f"and {remedy}",
        )
    raise StrategyError(f"the model cannot take a sample alone, {reason}", f"and {remedy}")


def _tensors(objective: Objective, params: Params, batch: Batch) -> list[Tensor]:
    """The floating-point tensors that the model returns."""
    if isinstance(objective, DifferenceObjective):
        return _tensors(objective.minuend, params, batch)
    outputs = objective.predict(leaves_of(params), batch.inputs)
    if isinstance(outputs, LinearizedOutputs):
        return [value.detach() for value in outputs.changes if value.numel()]
    return [value.detach() for value in Tree.of(outputs).tensors if value.numel()]
