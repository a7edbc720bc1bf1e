"""The matrix of each batch of an operator, known by its products as their sum is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.errors import PipelineError
from pipeline.operator.batch_sum import BatchSum
from pipeline.operator.curvature_operator import CurvatureOperator


@dataclass(frozen=True)
class BatchOperators:
    """The matrices H_b of B batches, whose sum is H = Σ_b weights[b] H_b.

    scales: scales[b] H_b is the estimate of H by one batch: 1 for a mean loss; N / n_b of N samples for a summed one.
    """

    operators: Sequence[CurvatureOperator]
    weights: Sequence[float]
    scales: Sequence[float]


def operators_of_batches(operator: CurvatureOperator) -> BatchOperators:
    """The matrix of each batch of an operator on a list of at least two, by the same way.

    Each is the matrix of the batch's own loss, so that for a mean loss over n terms its entries are as large as those
    of the matrix of all batches. Memory: as much again as `operator` keeps of graphs, where that keeps none.

    Raises:
        PipelineError: it is not known how the batches add up, or one has no terms, so that it has no mean loss.
    """
    whole = operator._sum
    assert isinstance(whole, BatchSum), (
        "batches of an operator that is dealt to workers are taken of the one before"
    )
    assert whole.batches.held is not None, "batches are a list"
    assert whole.terms is not None, "there are several batches"
    sizes, terms = [batch.num_samples for batch in whole.batches.held], whole.counted()
    if 0 in terms:
        raise PipelineError(
            f"batch {terms.index(0)} has no label that counts, and so no mean loss and no matrix of its own: set "
            "strategy.each_batch=false, or leave the batch out."
        )
    is_sum, total = whole.terms.is_sum, sum(terms)
    return BatchOperators(
        [replace(operator, num_products=0, _sum=whole.of_batch(index)) for index in range(len(sizes))],
        [1.0 if is_sum else each / total for each in terms],
        [sum(sizes) / size if is_sum else 1.0 for size in sizes],
    )
