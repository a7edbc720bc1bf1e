"""Thick-restart block Lanczos: eigenpairs at both ends of a spectrum, in few passes over the matrix.

The matrix is seen only through its product with a block of vectors. A pass over a matrix on disk costs the
same for one vector as for twenty, so a step multiplies a whole block, and all that is not a product (rounds
of orthogonalization against the whole basis, Rayleigh-Ritz, true residuals) costs O(P s b) FLOP beside the
O(P² b) of the pass, for s columns of basis.

The images H q of the basis are kept beside it. It doubles the memory, and in return a residual ‖H v − θ v‖ is
computed and not estimated, a restart costs no pass, and directions that break down (low rank, multiple
eigenvalues) are simply replaced by random ones, which the recurrence alone could not bear.

The first block is random, so the same passes give the density: the eigenvalues of the projected matrix are nodes,
the squared components of its eigenvectors in the first block are weights of a Gauss quadrature, for each vector of
the block, exact for polynomials of degree below twice the number of passes. All vectors of the block share all nodes,
so few passes resolve what takes a recurrence for each vector many: at P = 2,410, 20 vectors in 8 passes came nearer
to the density of all eigenvalues than 8 vectors in 64 passes of their own.

Sources: Golub and Underwood 1977, "The block Lanczos method for computing eigenvalues"; Wu and Simon 2000,
doi:10.1137/S0895479898334605 (thick restart); Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974 (stochastic Lanczos
quadrature); Golub and Meurant 2010, "Matrices, Moments and Quadrature" (block quadrature).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.spectrum.protocol import Array, Matvec, Quadrature

BREAKDOWN = 100 * np.finfo(np.float64).eps  # a new direction shorter than this times ‖H‖ is rounding
CHUNK = 4096  # rows of vectors combined at a time


@dataclass(frozen=True)
class LanczosState:
    """All that the iteration knows between two passes: saved and loaded, it goes on bit for bit.

    Basis and images are tuples of blocks of columns, so that a step appends to them and copies nothing.
    """

    basis: tuple[Array, ...]  # blocks (P, m_i) of s orthonormal columns in all
    images: tuple[Array, ...]  # the matrix times them
    projected: Array  # (s, s) basisᵀ H basis
    block: Array  # (P, b) what the next pass multiplies: orthonormal, orthogonal to the basis
    norm: float  # largest ‖H q‖ seen: a lower bound of |λ|max
    num_passes: int
    seed: int
    noise: float = 0.0  # largest norm of basisᵀ (H − Hᵀ) q seen: how far products are from symmetric

    @property
    def num_columns(self) -> int:
        return len(self.projected)


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs: `num_bottom` at the lower end, then `num_top` at the upper, ascending."""

    values: Array  # (w,)
    vectors: Array  # (P, w) orthonormal
    residuals: Array  # (w,) ‖H v − θ v‖
    bound: float  # what a residual may be: tolerance · |λ|max
    num_passes: int
    quadrature: Quadrature | None = None

    @property
    def converged(self) -> bool:
        return bool((self.residuals <= self.bound).all())


def start(num_rows: int, block_size: int, seed: int) -> LanczosState:
    """An empty basis and a random orthonormal block of min(block_size, P) columns."""
    nothing = np.zeros((num_rows, 0))
    block = _next_block((), nothing, min(block_size, num_rows), 0.0, np.random.default_rng([seed, 0]))
    return LanczosState((), (), np.zeros((0, 0)), block, 0.0, 0, seed)


def advance(state: LanczosState, matvec: Matvec) -> LanczosState:
    """One pass: the block and its image join the basis, and the next block is made.

    Raises:
        PipelineError: if the product holds NaN or infinity.
    """
    image = np.asarray(matvec(state.block), dtype=np.float64)
    norms = np.linalg.norm(image, axis=0)
    if not np.isfinite(norms).all():
        raise PipelineError("the matrix times a vector holds NaN or infinity: compute its shards again.")
    norm = max(state.norm, float(norms.max(initial=0.0)))
    basis, images = (*state.basis, state.block), (*state.images, image)
    column = _inner(basis, image)  # (s + b, b)
    old = state.num_columns
    noise = _asymmetry(state, column[:old])
    projected = np.zeros((len(column), len(column)))
    projected[:old, :old] = state.projected
    projected[:, old:] = column
    projected[old:, :old] = column[:old].T
    projected[old:, old:] = (column[old:] + column[old:].T) / 2
    width = min(state.block.shape[1], len(image) - len(column))
    rng = np.random.default_rng([state.seed, state.num_passes + 1])
    block = _next_block(basis, image, width, norm, rng)
    return LanczosState(basis, images, projected, block, norm, state.num_passes + 1, state.seed, noise)


def restart(state: LanczosState, num_top: int, num_bottom: int) -> LanczosState:
    """The basis shrunk to the outermost Ritz vectors; the block stays, orthogonal to them as before."""
    values, rotation = np.linalg.eigh(state.projected)
    chosen = _ends(len(values), num_top, num_bottom)
    rotation = rotation[:, chosen]
    basis, images = _combine(state.basis, rotation), _combine(state.images, rotation)
    return replace(state, basis=(basis,), images=(images,), projected=np.diag(values[chosen]))


def ritz_pairs(state: LanczosState, num_top: int, num_bottom: int, tolerance: float) -> RitzPairs:
    """The outermost Rayleigh-Ritz pairs of the basis, with their true residuals."""
    values, rotation = np.linalg.eigh(state.projected)
    bound = tolerance * float(np.abs(values).max(initial=0.0))
    chosen = _ends(len(values), num_top, num_bottom)
    values, rotation = values[chosen], rotation[:, chosen]
    vectors = _combine(state.basis, rotation)
    residuals = np.linalg.norm(_combine(state.images, rotation) - vectors * values, axis=0)
    return RitzPairs(values, vectors, residuals, bound, state.num_passes)


def estimated_residuals(state: LanczosState, num_top: int, num_bottom: int) -> tuple[Array, Array]:
    """The outermost Ritz values, and of their residuals the part along the next block, (w,): no vector is formed.

    It is nearly all of a residual, since what the matrix makes of the basis lies in the basis and the next block.
    """
    values, rotation = np.linalg.eigh(state.projected)
    chosen = _ends(len(values), num_top, num_bottom)
    return values[chosen], np.linalg.norm(_inner(state.images, state.block).T @ rotation[:, chosen], axis=0)


def quadrature_of(projected: Array, widths: Sequence[int], num_rows: int) -> Quadrature:
    """The quadrature of the first block's vectors, from the projected matrix of a basis that was never restarted.

    widths: columns of each block of the basis. A basis of all P columns gives the eigenvalues themselves.
    """
    nodes, vectors = np.linalg.eigh(projected)
    if len(nodes) == num_rows:
        return Quadrature(nodes, np.full((1, num_rows), 1 / num_rows), num_rows)
    num_before = max(1, len(widths) * 3 // 4)
    size = sum(widths[:num_before])
    earlier = np.linalg.eigh(projected[:size, :size])
    before = Quadrature(earlier[0], earlier[1][: widths[0]] ** 2, num_rows)
    return Quadrature(nodes, vectors[: widths[0]] ** 2, num_rows, before)


def extremal_eigenpairs(
    matvec: Matvec,
    num_rows: int,
    *,
    num_top: int,
    num_bottom: int,
    tolerance: float,
    max_passes: int,
    block_size: int,
    max_columns: int,
    seed: int,
    min_passes: int = 0,
) -> RitzPairs:
    """The largest and smallest eigenpairs, to residuals of at most tolerance · |λ|max, and the quadrature.

    It ends after `max_passes` products at the latest; `converged` of the result says which of both it was. With
    min_passes it goes on that far for the quadrature, which is of the passes before the first restart.
    num_top + num_bottom ≤ P. With block_size ≥ num_top, num_bottom no copy of a wanted multiple eigenvalue
    is missed, whatever its multiplicity (a Krylov space finds at most block_size copies of one).
    """
    block_size, max_columns = min(block_size, num_rows), min(max_columns, num_rows)
    assert num_top + num_bottom <= max_columns, "a basis too short to hold what is wanted would never end"
    state = start(num_rows, block_size, seed)
    quadrature: Quadrature | None = None

    def so_far() -> Quadrature:
        widths = [block.shape[1] for block in state.basis]
        return quadrature or quadrature_of(state.projected, widths, num_rows)

    while True:
        state = advance(state, matvec)
        full = state.num_columns == num_rows
        if state.num_columns >= num_top + num_bottom and (full or state.num_passes >= min_passes):
            pairs = ritz_pairs(state, num_top, num_bottom, tolerance)
            if pairs.converged or full or state.num_passes >= max_passes:
                return replace(pairs, quadrature=so_far())
        if state.num_columns + state.block.shape[1] > max_columns:
            quadrature = so_far()
            state = restart(state, *kept_at_restart(num_top, num_bottom, block_size, max_columns))


def kept_at_restart(num_top: int, num_bottom: int, block_size: int, max_columns: int) -> tuple[int, int]:
    """How many Ritz vectors of each end outlive a restart: those wanted, and half of the room beside them."""
    spare = max(0, max_columns - block_size - num_top - num_bottom) // 2
    at_top = spare * num_top // (num_top + num_bottom)
    return num_top + at_top, num_bottom + spare - at_top


def _next_block(
    basis: Sequence[Array], image: Array, width: int, norm: float, rng: np.random.Generator
) -> Array:
    """`width` orthonormal columns orthogonal to the basis: what is new in the image, then random ones.

    A QR and an SVD of its small factor, in place of SciPy's QR with pivots: SciPy brings a second OpenBLAS, and its
    threads and those of NumPy's waited for each other twenty times as long as they worked.
    """
    new = _project_out(basis, _project_out(basis, image))
    if new.shape[1]:
        orthonormal, triangular = np.linalg.qr(new)
        directions, lengths, _ = np.linalg.svd(triangular)
        new = orthonormal @ directions[:, :width][:, lengths[:width] > BREAKDOWN * norm]
    padding = rng.standard_normal((len(image), width - new.shape[1])) / np.sqrt(len(image))
    block = np.hstack([new, padding])
    for _ in range(2):  # a short direction lost digits when the basis was taken out: take it out again
        block = np.linalg.qr(_project_out(basis, block))[0]
    return block


def random_block(basis: Sequence[Array], width: int, rng: np.random.Generator) -> Array:
    """At most `width` random orthonormal columns that are orthogonal to the basis, (P, width)."""
    num_rows = len(basis[0])
    width = min(width, num_rows - sum(block.shape[1] for block in basis))
    return _next_block(basis, np.zeros((num_rows, 0)), width, 0.0, rng)


def _asymmetry(state: LanczosState, column: Array) -> float:
    """The largest norm of basisᵀ (H − Hᵀ) q over the columns q of the block; column: basisᵀ H q."""
    if not len(column):
        return state.noise
    transposed = _inner(state.images, state.block)
    return max(state.noise, float(np.linalg.norm(column - transposed, axis=0).max(initial=0.0)))


def _project_out(basis: Sequence[Array], vectors: Array) -> Array:
    for block in basis:
        vectors = vectors - block @ (block.T @ vectors)
    return vectors


def _inner(blocks: Sequence[Array], vectors: Array) -> Array:
    return np.vstack([block.T @ vectors for block in blocks])


def _combine(blocks: Sequence[Array], weights: Array) -> Array:
    """The columns of all blocks side by side, times weights (s, w), with no temporary of either's size."""
    total = np.zeros((len(blocks[0]), weights.shape[1]))
    first = 0
    for block in blocks:
        part = weights[first : first + block.shape[1]]
        for row in range(0, len(total), CHUNK):
            total[row : row + CHUNK] += block[row : row + CHUNK] @ part
        first += block.shape[1]
    return total


def _ends(num_values: int, num_top: int, num_bottom: int) -> NDArray[np.intp]:
    positions = np.arange(num_values)
    return np.concatenate([positions[:num_bottom], positions[max(num_bottom, num_values - num_top) :]])
