"""The sum over batches in parts, each of which another process may compute; the parts are added in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.matrix import Matrix
from pipeline.objective import Batch, Criterion, differentiation
from pipeline.operator.batch_sum import BatchSum, Net
from pipeline.operator.checkpointed import Checkpointed
from pipeline.operator.curvature_operator import CurvatureOperator
from pipeline.operator.protocol import Way

Multiply = Callable[[NDArray[Any]], Sequence[NDArray[np.float64]]]
"""V, (P, m), to the sums of all parts, in their order."""


@dataclass(frozen=True)
class Part:
    """Some of the batches of an operator, and what makes their products those that the operator itself would take.

    indices: of the batches, ascending. weights: the terms of each. way: how a product is computed, in which dtype.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]
    way: Way
    dtype: torch.dtype


@dataclass(frozen=True)
class PartialSum:
    """V ↦ Σ_b t_b H_b V over the batches of a part, which have t_b terms: (P, m) to (P, m) in float64.

    The same vectors give the same bits in every process with as many threads.
    """

    total: BatchSum

    @staticmethod
    def of(
        part: Part,
        model: nn.Module,
        criterion: Criterion,
        batches: Sequence[Batch],
        matrix: Matrix,
        parameters: Sequence[str] | None = None,
        share: float = 1.0,
    ) -> PartialSum:
        """Of the batches that a part names among all of an operator, at the weights that the model has now.

        share: of the free memory that this process may use: graphs are kept while a fourth of that holds them.
        """
        pairs = [tuple(batches[index]) for index in part.indices]
        net = Net(model, criterion, parameters, None, None, isinstance(part.way, Checkpointed))
        whole = BatchSum.of(net, matrix, pairs, part.dtype)
        return PartialSum(replace(whole, way=part.way, weights=part.weights, share=share))

    def __call__(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        place = next(iter(self.total.params.values())).device
        with differentiation():
            found, _ = self.total.weighted(torch.tensor(np.ascontiguousarray(vectors), device=place))
            self.total.forget_trial()  # of which the memory of a graph was told
        result: NDArray[np.float64] = found.cpu().numpy()
        return result


@dataclass(frozen=True)
class SumOfParts:
    """V ↦ Σ_b w_b H_b V, added from sums of parts; the loss and its gradient are those of `whole`."""

    whole: BatchSum
    terms: float
    multiply: Multiply

    def __call__(self, vectors: Tensor) -> Tensor:
        total = np.zeros(tuple(vectors.shape))
        for found in self.multiply(vectors.cpu().numpy()):
            total += found
        return self.whole.normalized(torch.from_numpy(total).to(vectors.device), self.terms)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        return self.whole.loss_and_gradient()


def parts_of(operator: CurvatureOperator, num_parts: int) -> list[Part]:
    """The batches of an operator in parts of about as many samples each; of a list of batches, at least so many.

    Raises:
        PipelineError: it is not known how the batches add up.
    """
    whole = operator._sum
    assert isinstance(whole, BatchSum), "an operator has parts once"
    held, way = whole.batches.held, whole.way
    assert held is not None, "batches are a list"
    assert way is not None, "a way is selected first"
    weights = whole.counted()
    return [
        Part(indices, tuple(weights[index] for index in indices), way, operator.dtype)
        for indices in split_evenly([batch.num_samples for batch in held], num_parts)
    ]


def sum_of_parts(operator: CurvatureOperator, parts: Sequence[Part], multiply: Multiply) -> CurvatureOperator:
    """The same matrix, with products added from what `multiply` gives for each part; own graphs are let go."""
    whole = operator._sum
    assert isinstance(whole, BatchSum), "an operator has parts once"
    whole.kept.clear()
    terms = sum(sum(part.weights) for part in parts)
    return replace(operator, _sum=SumOfParts(whole, terms, multiply))


def split_evenly(sizes: Sequence[int], num_parts: int) -> list[tuple[int, ...]]:
    """Indices in parts of nearly the same total size: the largest first, each to the part that has least so far."""
    assert num_parts <= len(sizes), "no part is empty"
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        min(parts, key=lambda part: (sum(sizes[i] for i in part), len(part))).append(index)
    return [tuple(sorted(part)) for part in parts]
