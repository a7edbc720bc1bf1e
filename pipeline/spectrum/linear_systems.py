"""Linear systems with a matrix that is known by its products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.errors import PipelineError
from pipeline.spectrum.protocol import Array, ProductMatrix, checked_matrix
from pipeline.validation import check_count, check_number

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
    matrix: ProductMatrix, b: Array, damping: float = 0.0, tolerance: float = 1e-6, max_products: int = 5_000
) -> Solution:
    """Solve (H + damping · I) x = b by MINRES (Paige and Saunders 1975, doi:10.1137/0712047), for each column of b.

    H may be indefinite, as Hessians are, and singular if b is in its range. The residual that counts is taken with a
    product of its own; where MINRES stops too early, it goes on from there.
    b: (P,) or (P, m). tolerance: of the residual of each column, relative to ‖b‖.
    Cost: about √κ products a column, κ the condition of H + damping · I. Memory: some ten vectors.

    Raises:
        PipelineError: b has another shape, or a residual stays above the tolerance: H + damping · I is singular, or too
            close to it.
    """
    matrix = checked_matrix(matrix)
    check_number("damping", damping, minimum=0)
    check_number("tolerance", tolerance, above=0, below=1)
    check_count("max_products", max_products)
    right = np.asarray(b.detach().cpu() if hasattr(b, "detach") else b, np.float64)
    if right.ndim not in (1, 2) or len(right) != matrix.num_rows or not np.isfinite(right).all():
        raise PipelineError(
            f"b has shape {right.shape}: give ({matrix.num_rows},) or ({matrix.num_rows}, m) finite numbers."
        )
    columns = [
        _solved(matrix, column, damping, tolerance, max_products)
        for column in right.reshape(len(right), -1).T
    ]
    x = np.array([column.x for column in columns]).reshape(-1, len(right)).T.reshape(right.shape)
    residuals = np.array([float(column.residuals[0]) for column in columns])
    return Solution(x, residuals, sum(column.num_products for column in columns))


def _solved(matrix: ProductMatrix, b: Array, damping: float, tolerance: float, max_products: int) -> Solution:
    from scipy.sparse.linalg import LinearOperator, minres  # slow to import

    size, number = float(np.linalg.norm(b)), 0

    def times(vector: Array) -> Array:
        nonlocal number
        number += 1
        product: Array = np.asarray(matrix.matvec(vector.reshape(-1, 1)), np.float64)[:, 0] + damping * vector
        return product

    operator = LinearOperator((len(b), len(b)), matvec=times, dtype=np.float64)
    x, residual = np.zeros_like(b), b
    relative = 1.0 if size > 0 else 0.0
    for _ in range(MOST_ROUNDS):
        if relative <= tolerance or number >= max_products:
            break
        step = minres(
            operator,
            residual,
            rtol=tolerance * size / np.linalg.norm(residual) / 10,
            maxiter=max_products - number,
        )[0]
        left = residual - times(step)
        if not np.linalg.norm(left) < np.linalg.norm(residual):
            break
        x, residual = x + step, left
        relative = float(np.linalg.norm(residual)) / size
    if not relative <= tolerance:
        raise PipelineError(
            f"the residual of (H + {damping:g} I) x = b is {relative:.1e} of b after {number} products, and "
            f"tolerance={tolerance:g}: raise damping, tolerance or max_products={max_products}."
        )
    return Solution(x, np.array([relative]), number)
