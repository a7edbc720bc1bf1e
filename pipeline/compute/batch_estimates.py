"""The spectra of single batches without a matrix: top eigenpairs, traces, norms, distances from the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.compute.estimates import half_widths
from pipeline.operator import BatchOperators, CurvatureOperator
from pipeline.results import BatchSpectra
from pipeline.shards import Array
from pipeline.spectrum import (
    Eigenpairs,
    Estimate,
    ProductMatrix,
    batch_moments,
    eigenspace_overlap,
    eigenspace_overlaps,
)

Keep = Callable[[CurvatureOperator, str], ProductMatrix]


def batch_estimates(
    batches: BatchOperators,
    num_samples: Sequence[int],
    vectors: Array,
    norm: Estimate,
    search: Callable[[ProductMatrix, int], Eigenpairs],
    num_products: int,
    seed: int,
    keep: Keep,
) -> BatchSpectra:
    """Estimates of each batch's own matrix, by products with it.

    vectors: the top eigenvectors of the mean matrix, (P, k). norm: its Frobenius norm. search: finds as many top pairs
    of the matrix of a batch, whose number it is told. num_products: random vectors, for traces and norms. keep: the
    same matrix, whose slow products are kept under a name. Memory: B k P numbers, the eigenvectors of all batches.
    """
    kept = [keep(operator, f"batch-{index:05d}") for index, operator in enumerate(batches.operators)]
    pairs = [search(matrix, index) for index, matrix in enumerate(kept)]
    moments = batch_moments(kept, batches.weights, batches.scales, vectors, pairs, num_products, seed=seed)
    distances = [_ratio(each, norm) for each in moments.distances]
    of_losses = [operator.loss_and_gradient() for operator in batches.operators]
    return BatchSpectra(
        eigenvalues=np.stack([each.values for each in pairs]),
        num_samples=np.array(num_samples),
        loss=np.array([loss for loss, _ in of_losses]),
        gradient_norm=np.array([float(gradient.norm()) for _, gradient in of_losses]),
        trace=_values(moments.traces),
        frobenius_norm=_values(moments.frobenius_norms),
        lambda_max=np.array([each.values[0] for each in pairs]),
        distance_to_mean=_values(distances),
        overlap_with_mean=np.array([eigenspace_overlap(each.vectors, vectors) for each in pairs]),
        overlap=eigenspace_overlaps([each.vectors for each in pairs]),
        trace_half_width=half_widths(moments.traces),
        frobenius_norm_half_width=half_widths(moments.frobenius_norms),
        distance_to_mean_half_width=half_widths(distances),
    )


def _ratio(distance: Estimate, norm: Estimate) -> Estimate:
    """With an interval that holds it wherever both are in theirs; zero of a zero matrix."""
    if norm.value == 0:
        return Estimate(0.0, 0.0, 0.0)
    value = distance.value / norm.value
    low, high = distance.low / norm.high, distance.high / norm.low if norm.low else np.inf
    reach = max(value - low, high - value)
    return Estimate(value, value - reach, value + reach)


def _values(estimates: Sequence[Estimate]) -> Array:
    return np.array([each.value for each in estimates])
