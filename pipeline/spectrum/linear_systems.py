"""Linear systems with a matrix that is known by its products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.errors import PipelineError
from pipeline.spectrum.extremal_pairs import Eigenpairs
from pipeline.spectrum.minres import minres
from pipeline.spectrum.protocol import (
    Array,
    ProductMatrix,
    checked_matrix,
    columns_at_once,
    product_of,
    real_numbers,
)
from pipeline.validation import check_count, check_number

TARGET = 0.7  # of the tolerance, that the recurrence aims at: the rest is left for rounding
RELIABLE = 0.01  # of |λ + damping|, up to which a residual leaves a pair of use
WELL = 0.1  # of the residual, that a round with known pairs leaves at most, where these are of use
MOST_ROUNDS = 10  # of refinement: each solves for the residual that the one before has left


@dataclass(frozen=True)
class Solution:
    """x of (H + damping · I) x = b, and the residual of each right side ‖b − (H + damping · I) x‖ / ‖b‖, by a product
    with x itself.
    """

    x: Array  # as b: (P,) or (P, m)
    residuals: Array  # (m,)
    num_products: int


def solve(
    matrix: ProductMatrix,
    b: Array,
    damping: float = 0.0,
    tolerance: float = 1e-6,
    max_products: int = 5_000,
    pairs: Eigenpairs | None = None,
) -> Solution:
    """Solve (H + damping · I) x = b by MINRES (Paige and Saunders 1975, doi:10.1137/0712047), for each column of b.

    H may be indefinite, as Hessians are, and singular if b is in its range. The residual that counts is taken with a
    product of its own; where it is larger than that of the recurrence, MINRES goes on from there.
    b: (P,) or (P, m). tolerance: of the residual of each column, relative to ‖b‖. max_products: for each column.
    pairs: eigenpairs of H that are known already. The part of x in their space costs nothing, and MINRES works in the
        rest (Nicolaides 1987, doi:10.1137/0724027); how exact they are changes how many products it takes, not x.
    Cost: about √κ products a column, κ the condition of H + damping · I, without the pairs. Memory: some ten
    vectors for each of up to 16 columns of a stored matrix, for one of an operator, and those of `pairs`.

    Raises:
        PipelineError: b has another shape, or a residual stays above the tolerance: H + damping · I is singular, or too
            close to it for the precision of the products.
    """
    matrix = checked_matrix(matrix)
    known = _Known.of(pairs, matrix.num_rows, damping)
    check_number("damping", damping, minimum=0)
    check_number("tolerance", tolerance, above=0, below=1)
    check_count("max_products", max_products)
    remedy = f"give ({matrix.num_rows},) or ({matrix.num_rows}, m) finite numbers"
    right = real_numbers(b, "b", remedy).astype(np.float64)
    if right.ndim not in (1, 2) or len(right) != matrix.num_rows:
        raise PipelineError(f"b has shape {right.shape}: {remedy}.")
    if not np.isfinite(right).all():
        raise PipelineError(f"b holds NaN or infinity: {remedy}.")
    columns = right.reshape(len(right), -1)
    x, relative = np.zeros_like(columns), np.zeros(columns.shape[1])
    number, width = 0, columns_at_once(matrix)
    for first in range(0, columns.shape[1], width):
        part = slice(first, first + width)
        system = _System(matrix, damping, known)
        x[:, part], relative[part] = system.solved(columns[:, part], tolerance, max_products)
        number += system.num_products
    if (relative > tolerance).any():
        single = "float32" in str(getattr(matrix, "dtype", ""))
        precision = ", or compute in float64" if single else ""
        raise PipelineError(
            f"the residual of (H + {damping:g} I) x = b is {relative.max():.1e} of b after {number} products, and "
            f"tolerance={tolerance:g}: raise damping, tolerance or max_products={max_products}{precision}."
        )
    return Solution(x.reshape(right.shape), relative, number)


@dataclass(frozen=True)
class _Known:
    """A space with an orthonormal basis, (P, k), of eigenvectors, and what H + damping · I does to each of them."""

    vectors: Array
    factors: Array

    @staticmethod
    def of(pairs: Eigenpairs | None, num_rows: int, damping: float) -> _Known:
        if pairs is None:
            return _Known.none(num_rows)
        pairs = Eigenpairs.checked(pairs, num_rows)
        factors = np.asarray(pairs.values, np.float64) + damping
        is_used = pairs.residuals < RELIABLE * np.abs(factors)  # and so not those of which it makes nothing
        return _Known(np.asarray(pairs.vectors, np.float64)[:, is_used], factors[is_used])

    @staticmethod
    def none(num_rows: int) -> _Known:
        return _Known(np.zeros((num_rows, 0)), np.zeros(0))

    def without(self, vectors: Array) -> Array:
        """The part of vectors, (P, m), that is orthogonal to the space."""
        rest: Array = vectors - self.vectors @ (self.vectors.T @ vectors)
        return rest

    def solution(self, right: Array) -> Array:
        """In the space, as if it were invariant to the last bit."""
        found: Array = self.vectors @ ((self.vectors.T @ right) / self.factors[:, None])
        return found


@dataclass
class _System:
    """H + damping · I, and how many columns it has been multiplied with."""

    matrix: ProductMatrix
    damping: float
    known: _Known
    num_products: int = 0

    def times(self, vectors: Array) -> Array:
        self.num_products += vectors.shape[1]
        product: Array = np.asarray(product_of(self.matrix, vectors), np.float64) + self.damping * vectors
        return product

    def solved(self, b: Array, tolerance: float, max_products: int) -> tuple[Array, Array]:
        """Solutions for a few right sides, (P, m), and their relative residuals, which may be above the tolerance."""
        sizes, known = np.linalg.norm(b, axis=0), self.known
        x, residual = np.zeros_like(b), b.copy()
        relative = np.where(sizes > 0, 1.0, 0.0)
        most = max_products * b.shape[1]
        for _ in range(MOST_ROUNDS):
            at = np.flatnonzero(relative > tolerance)
            if not len(at) or self.num_products >= most:
                break
            target, most_steps = TARGET * tolerance * sizes[at], (most - self.num_products) // len(at)
            step = self._step(known, residual[:, at], target, most_steps)
            left = residual[:, at] - self.times(step)
            sizes_left, sizes_before = (np.linalg.norm(each, axis=0) for each in (left, residual[:, at]))
            is_less = sizes_left < sizes_before
            if not is_less.any() and not len(known.factors):
                break
            if (sizes_left > WELL * sizes_before).any():
                known = _Known.none(len(b))  # they are not as exact as they say, or of another matrix
            better = at[is_less]
            x[:, better] += step[:, is_less]
            residual[:, better] = left[:, is_less]
            relative[better] = np.linalg.norm(residual[:, better], axis=0) / sizes[better]
        return x, relative

    def _step(self, known: _Known, residual: Array, target: Array, most_steps: int) -> Array:
        """What is to be added to x: in the known space at once, in the rest by MINRES."""

        def times(vectors: Array) -> Array:
            return known.without(self.times(known.without(vectors)))

        rest = minres(times, known.without(residual), target, most_steps)
        return known.solution(residual) + known.without(rest)
