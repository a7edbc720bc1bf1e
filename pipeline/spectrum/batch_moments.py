"""Traces and norms of the matrices of batches, and how far each is from their mean, from the same products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import PipelineError
from pipeline.spectrum.extremal_pairs import Eigenpairs
from pipeline.spectrum.protocol import NOT_FINITE, Array, ProductMatrix, product_of
from pipeline.spectrum.random_traces import FEWEST, Estimate, interval, random_signs, square_root
from pipeline.validation import check_count


@dataclass(frozen=True)
class BatchMoments:
    """Of each of B matrices H_b: its trace, ‖H_b‖_F, and ‖s_b H_b − H‖_F for the sum H = Σ_b w_b H_b."""

    traces: Sequence[Estimate]
    frobenius_norms: Sequence[Estimate]
    distances: Sequence[Estimate]
    num_products: int  # with each of the B matrices


def batch_moments(
    matrices: Sequence[ProductMatrix],
    weights: Sequence[float],
    scales: Sequence[float],
    space: Array,
    pairs: Sequence[Eigenpairs],
    num_products: int = 96,
    confidence: float = 0.95,
    seed: int = 0,
) -> BatchMoments:
    """Traces and norms of the symmetric matrices H_b of batches, whose sum with `weights` w_b is H.

    What the matrices do in `space`, whose columns Q are orthonormal, is exact; the rest is the mean over random signs z
    of zᵀ (I − QQᵀ) A (I − QQᵀ) z for a trace, and of ‖A (I − QQᵀ) z‖² for the square of a norm (Hutchinson 1989), with
    Student's interval. What eigenpairs of H_b give of these numbers is known, and only the rest is estimated. All
    matrices are multiplied with the same vectors: H z is known from the H_b z, and the difference of a batch from the
    mean takes no products of its own.

    scales: s_b: the matrix s_b H_b is the estimate of H by batch b alone; 1 for a mean loss. space: (P, k), such as the
    top eigenvectors of H. pairs: of each H_b; their residuals cause no error. num_products: random vectors, at least
    12; where they and k are as many as P, all is exact.

    Cost: k + num_products products with each H_b, one vector at a time. Memory: B + 3 vectors, and k of each H_b.

    Raises:
        PipelineError: an option is wrong, or a product is not finite.
    """
    check_count("num_products", num_products, minimum=FEWEST)
    check_count("seed", seed, minimum=0)
    num_rows, rng = matrices[0].num_rows, np.random.default_rng([seed, 2])
    basis = np.asarray(space, np.float64)
    if num_products + basis.shape[1] >= num_rows:
        basis, num_products = np.eye(num_rows), 0
    exact = np.zeros((3, len(matrices)))
    for column in basis.T:
        exact += _numbers(matrices, weights, scales, column)
    each: list[Array] = [np.zeros((0, *exact.shape))]
    if num_products:
        outside = [found.vectors - basis @ (basis.T @ found.vectors) for found in pairs]
        exact += np.transpose(
            [_known((part**2).sum(axis=0), found) for part, found in zip(outside, pairs, strict=True)]
        )
    for _ in range(num_products):
        signs = random_signs(rng, num_rows, 1)[:, 0]
        rest = signs - basis @ (basis.T @ signs)
        known = np.transpose([_known((found.vectors.T @ rest) ** 2, found) for found in pairs])
        each.append((_numbers(matrices, weights, scales, rest) - known)[None])
    sample = np.concatenate(each)  # (m, 3, B)
    traces, squares, deviations = (
        [interval(sample[:, kind, b], float(exact[kind, b]), confidence) for b in range(len(matrices))]
        for kind in range(3)
    )
    return BatchMoments(
        traces,
        [square_root(each) for each in squares],
        [square_root(each) for each in deviations],
        basis.shape[1] + num_products,
    )


def _numbers(
    matrices: Sequence[ProductMatrix], weights: Sequence[float], scales: Sequence[float], vector: Array
) -> Array:
    """(3, B): vᵀ H_b v, ‖H_b v‖² and ‖(s_b H_b − H) v‖² of one vector v."""
    products = [np.asarray(product_of(matrix, vector[:, None]), np.float64)[:, 0] for matrix in matrices]
    mean = np.zeros_like(vector)
    for weight, product in zip(weights, products, strict=True):
        mean += weight * product
    found: Array = np.array(
        [
            [vector @ product for product in products],
            [product @ product for product in products],
            [
                float(np.sum((scale * product - mean) ** 2))
                for scale, product in zip(scales, products, strict=True)
            ],
        ]
    )
    if not np.isfinite(found).all():
        raise PipelineError(NOT_FINITE)
    return found


def _known(squares: Array, pairs: Eigenpairs) -> Array:
    """(3,): what eigenpairs of a batch give of the numbers above, for the squares of vᵀz, (k,)."""
    return np.array([squares @ pairs.values, squares @ pairs.values**2, 0.0])
