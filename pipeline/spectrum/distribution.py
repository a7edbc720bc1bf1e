"""The distribution of eigenvalues from products with random vectors, inside a band that holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import PipelineError
from pipeline.spectrum import rows as on
from pipeline.spectrum.density import WIDTH, DensityGrid, estimate, fit_grid, resolution_of
from pipeline.spectrum.extremal_pairs import Eigenpairs
from pipeline.spectrum.orthogonal import BREAKDOWN, orthogonalize
from pipeline.spectrum.protocol import (
    NOT_FINITE,
    Array,
    ProductMatrix,
    Quadrature,
    Watch,
    checked_matrix,
)
from pipeline.spectrum.unit_scale import UnitScale
from pipeline.validation import check_count, check_number


@dataclass(frozen=True)
class SpectralDistribution:
    """F(x), the share of eigenvalues that are at most x, inside a band; and a smoothed density.

    points: (n,) ascending, the first −∞. low, high: (n,) the band from each point up to the next. With the confidence
    that was asked for it holds F everywhere at once. spread: what the random vectors add to it on both sides; the rest
    is what so few steps leave open. quadrature: nodes and weights of each vector. grid, density, error: see
    `spectrum/density.py`; the grid is linear within what the nodes resolve. is_reorthogonalized: else memory held no
    basis, and brackets are of exact arithmetic.
    """

    points: Array
    low: Array
    high: Array
    spread: float
    quadrature: Quadrature
    grid: DensityGrid
    density: Array
    error: Array
    is_reorthogonalized: bool
    num_products: int

    @property
    def width(self) -> float:
        """The mean width of the band over the points of the grid, between 0 and 1."""
        low, high = self.at(self.grid.eigenvalues)
        return float((high - low).mean())

    def at(self, x: Array) -> tuple[Array, Array]:
        """The band at any x: bounds of the share of eigenvalues that are at most x."""
        index = np.searchsorted(self.points, x, side="right") - 1
        return self.low[index], self.high[index]


def density(
    matrix: ProductMatrix,
    num_vectors: int = 8,
    num_steps: int = 48,
    confidence: float = 0.95,
    pairs: Eigenpairs | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    memory: int | None = None,
) -> SpectralDistribution:
    """The distribution of eigenvalues by Lanczos quadrature, with a band that holds it, and the smoothed density.

    A random unit vector v sees the distribution F_v(x) = Σ (v · u_j)² over λ_j ≤ x. Its Gauss quadrature of s nodes
    brackets F_v: at a node, the sums of the weights before it and up to it are bounds (Chebyshev, Markov, Stieltjes).
    F_v(x) is a Beta variable of mean F(x), sub-Gaussian with the variance 1 / (2 (P + 2)) at most (Marchal and Arbel
    2017, arXiv:1705.00048), so that the mean over m vectors is nowhere further off than sqrt(ln(2P/δ) / (m (P + 2)))
    with a probability of 1 − δ. Source of both together: Chen, Trogdon and Ubaru 2021, arXiv:2105.06595.

    num_vectors: m; on nets of many weights one sees nearly the whole. num_steps: s; the band is as narrow as weights of
    nodes are small. pairs: eigenpairs of the matrix that are known already: each counts for exactly 1 / P of the
    eigenvalues, and the vectors see what lies in the space without theirs, so that outliers blur nothing (as in
    arXiv:2410.21690). watch: is called after each step with the number of products so far, and NaN for a residual.
    memory: bytes that m · s vectors in the precision of the products, and 4 m in float64, may take; where they do not
    fit, the last two of each recurrence are held alone. None: half of what is free where the vectors lie.

    Cost: m · s products, m at once; beside them 2 s · P FLOP for each product, on average, and half of these bytes.

    Raises:
        PipelineError: an option is wrong, or a product is not finite.
    """
    matrix = checked_matrix(matrix)
    check_count("num_vectors", num_vectors)
    check_count("num_steps", num_steps, minimum=2)
    check_number("confidence", confidence, above=0, below=1)
    check_count("seed", seed, minimum=0)
    outliers = _Outliers.of(pairs, matrix.num_rows)
    num_rest = matrix.num_rows - len(outliers.values)
    if num_rest == 0:
        raise PipelineError("all eigenvalues are known already: leave out pairs.")
    num_steps = min(num_steps, num_rest)
    like = on.rows_like(matrix)
    room = on.free_memory(like) // 2 if memory is None else memory
    itemsize = 8 if like is None else like.element_size()
    is_kept = bytes_of_recurrences(matrix.num_rows, num_vectors, num_steps, itemsize) <= room
    rng = np.random.default_rng([seed, 3])
    with on.plain_arithmetic(like):
        about = (matrix, outliers.vectors, num_vectors, num_steps, is_kept, rng, watch)
        recurrences = [*zip(*_recurrences(*about), strict=True)]
    rules = [_rule(alpha, beta) for alpha, beta in recurrences]
    fewer = 3 * num_steps // 4 or 1
    earlier = _together([_rule(alpha[:fewer], beta[:fewer]) for alpha, beta in recurrences], num_rest)
    spread = float(np.sqrt(np.log(2 * num_rest / (1 - confidence)) / (num_vectors * (num_rest + 2))))
    rest = _together(rules, num_rest)
    points = np.concatenate([[-np.inf], np.unique([*rest.nodes, *outliers.low, *outliers.high])])
    low, high = np.mean([_bracket(rule, points) for rule in rules], axis=0) + np.array([[-spread], [spread]])
    low, high = outliers.with_rest(points, low.clip(0, 1), high.clip(0, 1))
    quadrature = replace(outliers.quadrature(rest), earlier=outliers.quadrature(earlier))
    ends = float(quadrature.nodes[0]), float(quadrature.nodes[-1])
    resolution = resolution_of(quadrature) / (max(map(abs, ends)) or 1.0)
    grid = fit_grid(*ends, relative_threshold=max(1e-6, resolution))
    values, error = estimate(quadrature, grid, WIDTH)
    return SpectralDistribution(
        points, low, high, spread, quadrature, grid, values, error, is_kept, num_vectors * num_steps
    )


def bytes_of_recurrences(num_rows: int, num_vectors: int, num_steps: int, itemsize: int) -> int:
    """Bytes of `distribution_of` where it keeps all Lanczos vectors; of 0 steps: where it does not."""
    return num_rows * num_vectors * (itemsize * num_steps + 4 * 8)


@dataclass(frozen=True)
class _Outliers:
    """Eigenvalues that are known, k of P: each within its residual, with the vectors (P, k) that the rest lacks."""

    values: Array  # (k,) ascending
    low: Array
    high: Array
    vectors: Array

    @staticmethod
    def of(pairs: Eigenpairs | None, num_rows: int) -> _Outliers:
        """Raises a PipelineError for pairs of another matrix."""
        if pairs is None:
            return _Outliers(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((num_rows, 0)))
        pairs = Eigenpairs.checked(pairs, num_rows)
        order = np.argsort(pairs.values)
        values, residuals = pairs.values[order], pairs.residuals[order]
        vectors = np.asarray(pairs.vectors, np.float64)
        return _Outliers(values, np.sort(values - residuals), np.sort(values + residuals), vectors)

    def with_rest(self, points: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """The band of all eigenvalues, from that of the rest."""
        num_known, num_rows = self.vectors.shape[1], len(self.vectors)
        share = (num_rows - num_known) / num_rows
        surely = np.searchsorted(self.high, points, side="right") / num_rows
        possibly = np.searchsorted(self.low, points, side="right") / num_rows
        return surely + share * low, possibly + share * high

    def quadrature(self, rest: Quadrature) -> Quadrature:
        """Nodes and weights of all eigenvalues, from those of the rest."""
        num_rows, num_vectors = len(self.vectors), len(rest.weights)
        nodes = np.concatenate([self.values, rest.nodes])
        known = np.full((num_vectors, len(self.values)), 1 / num_rows)
        weights = np.concatenate([known, rest.weights * (rest.num_rows / num_rows)], axis=1)
        order = np.argsort(nodes, kind="stable")
        return Quadrature(nodes[order], weights[:, order], num_rows)


def _recurrences(
    matrix: ProductMatrix,
    known: Array,
    num_vectors: int,
    num_steps: int,
    is_kept: bool,
    rng: np.random.Generator,
    watch: Watch | None,
) -> tuple[Array, Array]:
    """Diagonals and side diagonals, (m, s), of the Lanczos recurrences of m random vectors, which go side by side.

    known: (P, k) eigenvectors, without which the vectors go. is_kept: whether all vectors are kept, and each is made
    orthogonal to those before it; else to the last two.

    Raises:
        PipelineError: a product is not finite.
    """
    like, num_rows, unit = on.rows_like(matrix), matrix.num_rows, UnitScale(matrix)
    outside, image = on.empty(known.shape[1], num_rows, like), on.empty(num_vectors, num_rows, like)
    on.assign(outside, known.T)
    on.assign(image, rng.standard_normal((num_rows, num_vectors)).T)
    num_kept = num_steps if is_kept else 2
    bases = on.empty(num_vectors * num_kept, num_rows, like).reshape(num_vectors, num_kept, num_rows)
    diagonals, sides = np.zeros((2, num_vectors, num_steps))
    orthogonalize(outside, image, 0, norm=0.0)
    norm, beta = 0.0, on.lengths(image)
    for step in range(num_steps):
        place, num_before = step % num_kept, min(step + 1, num_kept)
        for row, basis, length in zip(image, bases, beta, strict=True):
            on.assign(basis[place], row / (length or 1.0))
        on.assign(image, unit.matvec(bases[:, place].T).T)
        norms = on.lengths(image)
        if not np.isfinite(norms).all():
            raise PipelineError(NOT_FINITE)
        norm = max(norm, float(norms.max()))
        orthogonalize(outside, image, len(outside), norm)
        for index, basis in enumerate(bases):
            rest = image[index : index + 1]
            found = orthogonalize(basis[:num_before], rest, max(0, num_before - 2), norm)
            diagonals[index, step] = found[place, 0]
        beta = sides[:, step] = on.lengths(image)
        if watch is not None:
            watch((step + 1) * num_vectors, float("nan"))
    return diagonals / unit.factor, sides / unit.factor


def _rule(alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Nodes and weights of a recurrence, which ends where it has seen all that there is."""
    scale = max(float(np.abs(alpha).max()), float(beta.max()))
    ends = np.flatnonzero(beta <= BREAKDOWN * scale)
    size = int(ends[0]) + 1 if len(ends) else len(alpha)
    tridiagonal = np.diag(alpha[:size]) + np.diag(beta[: size - 1], 1) + np.diag(beta[: size - 1], -1)
    nodes, vectors = np.linalg.eigh(tridiagonal)
    return nodes, vectors[0] ** 2


def _bracket(rule: tuple[Array, Array], points: Array) -> tuple[Array, Array]:
    """Bounds of F_v from each point up to the next.

    At x with θ_l ≤ x < θ_{l+1} are F_v(x) ≥ F_v(θ_l) ≥ ω_1 + … + ω_{l-1} and F_v(x) ≤ F_v(θ_{l+1}) ≤ ω_1 + … + ω_{l+1}.
    """
    nodes, weights = rule
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    number = np.searchsorted(nodes, points, side="right")  # l
    return sums[np.maximum(number - 1, 0)], sums[np.minimum(number + 1, len(weights))]


def _together(rules: list[tuple[Array, Array]], num_rows: int) -> Quadrature:
    """All nodes side by side, each vector with weights at its own."""
    nodes = np.concatenate([nodes for nodes, _ in rules])
    weights = np.zeros((len(rules), len(nodes)))
    first = 0
    for index, (_, own) in enumerate(rules):
        weights[index, first : first + len(own)] = own
        first += len(own)
    order = np.argsort(nodes, kind="stable")
    return Quadrature(nodes[order], weights[:, order], num_rows)
