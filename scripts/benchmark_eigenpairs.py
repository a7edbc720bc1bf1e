"""Wrong sets of eigenpairs, and products taken, on matrices that are hard: `eigenpairs` beside SciPy's eigsh.

    python scripts/benchmark_eigenpairs.py [--seeds 100] [--rows 400]

Eigenvalues are known before anything is computed. A set is wrong if an eigenvalue differs from what it should be by
more than a tenth of the closest gap that the case has, or by 1e-8 of the largest where it has none.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from pipeline.spectrum.extremal_pairs import eigenpairs

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    name: str
    eigenvalues: Array
    top: int
    tolerance: float
    allowed: float


@dataclass
class Counted:
    """A matrix with these eigenvalues in random directions, which counts the vectors that it is multiplied with."""

    eigenvalues: Array
    seed: int
    num_products: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 7])
        self.basis = np.linalg.qr(rng.standard_normal((self.num_rows, self.num_rows)))[0]

    @property
    def num_rows(self) -> int:
        return len(self.eigenvalues)

    def matvec(self, vectors: Array) -> Array:
        self.num_products += vectors.shape[1] if vectors.ndim == 2 else 1
        scaled = self.eigenvalues.reshape(-1, *[1] * (vectors.ndim - 1)) * (self.basis.T @ vectors)
        return self.basis @ scaled


def cases(num_rows: int) -> list[Case]:
    rng = np.random.default_rng(0)
    bulk = rng.uniform(-0.1, 0.1, num_rows)

    def with_top(*values: float) -> Array:
        return np.sort(np.concatenate([bulk[len(values) :], values]))

    signs = np.where(rng.random(num_rows) < 0.3, -1, 1)
    hessian = np.sort(signs * 10 ** rng.uniform(-10, -2, num_rows))
    hessian[-10:] = np.linspace(3, 10, 10)
    rank = np.zeros(num_rows)
    rank[:5], rank[-12:] = -np.arange(5, 0, -1.0), np.linspace(1, 4, 12)
    return [
        Case("cluster, 10 within 1e-8", with_top(*(1 + 1e-9 * np.arange(10))), 5, 1e-12, 1e-10),
        Case("multiplicity 7", with_top(*[1.0] * 7, 0.9, 0.8), 10, 1e-8, 1e-8),
        Case("multiplicity 12", with_top(*[1.0] * 12), 15, 1e-8, 1e-8),
        Case("rank 17, asked for 20", rank, 20, 1e-8, 4e-8),
        Case("like a Hessian", hessian, 10, 1e-8, 1e-7),
        Case("no outliers", np.sort(rng.standard_normal(num_rows)), 10, 1e-8, 4e-8),
    ]


def by_pipeline(matrix: Counted, case: Case, seed: int) -> Array:
    return eigenpairs(matrix, case.top, 0, case.tolerance, block_size=4, seed=seed).values


def by_scipy(matrix: Counted, case: Case, seed: int) -> Array:
    shape = (matrix.num_rows, matrix.num_rows)
    start = np.random.default_rng(seed).standard_normal(matrix.num_rows)
    operator = LinearOperator(shape, matvec=matrix.matvec, dtype=np.float64)
    try:
        found = eigsh(operator, case.top, which="LA", tol=case.tolerance, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence:
        return np.full(case.top, np.nan)
    return np.sort(found)[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--rows", type=int, default=400)
    options = parser.parse_args()
    print(
        f"{'P = ' + str(options.rows):26} {'wrong sets of ' + str(options.seeds):>22} {'products, median':>22}"
    )
    print(f"{'':26} {'eigenpairs':>11} {'eigsh':>10} {'eigenpairs':>11} {'eigsh':>10}")
    for case in cases(options.rows):
        expected = case.eigenvalues[::-1][: case.top]
        wrong, products = [], []
        for find in (by_pipeline, by_scipy):
            errors, counts = [], []
            for seed in range(options.seeds):
                matrix = Counted(case.eigenvalues, seed)
                found = find(matrix, case, seed)
                errors.append(not np.abs(found - expected).max() <= case.allowed)
                counts.append(matrix.num_products)
            wrong.append(sum(errors))
            products.append(int(np.median(counts)))
        print(f"{case.name:26} {wrong[0]:11} {wrong[1]:10} {products[0]:11} {products[1]:10}", flush=True)


if __name__ == "__main__":
    main()
