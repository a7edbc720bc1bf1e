"""Eigenpairs at both ends of a spectrum, with a check that none is missing, from products alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import PipelineError
from pipeline.spectrum.lanczos import (
    LanczosState,
    RitzPairs,
    advance,
    estimated_residuals,
    kept_at_restart,
    random_block,
    restart,
    ritz_pairs,
    start,
)
from pipeline.spectrum.protocol import Array, ProductMatrix, Watch, checked_matrix
from pipeline.system import available_memory, format_bytes
from pipeline.validation import check_count, check_number

BLOCKS_BESIDE = 15  # blocks of a basis beside twice the pairs that are asked for
UNLUCKY = 10.0  # a random block is taken to hold this many times less of a hidden eigenvector than it should


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at both ends of a spectrum and their vectors, the largest first.

    residuals: ‖H v − λ v‖, from products with the vectors that are returned: an eigenvalue lies within that of λ.
    complete: whether a search from a random block in the space without these vectors came to its end and found no
    pair beyond them; it fails with a probability of about 1e-4 for blocks of four. num_products: vectors that were
    multiplied.
    """

    values: Array  # (w,) descending: `top`, then `bottom`
    vectors: Array  # (P, w) orthonormal
    residuals: Array  # (w,)
    complete: bool
    num_products: int


def eigenpairs(
    matrix: ProductMatrix,
    top: int = 20,
    bottom: int = 1,
    tolerance: float = 1e-6,
    max_products: int = 10_000,
    block_size: int | None = None,
    max_columns: int | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    memory: int | None = None,
) -> Eigenpairs:
    """The `top` largest and `bottom` smallest eigenpairs of a symmetric matrix that is known by its products.

    Thick-restart block Lanczos (Wu and Simon 2000, doi:10.1137/S0895479898334605) until all residuals are at most
    tolerance · |λ|max. A Krylov space holds at most as many copies of a multiple eigenvalue as its blocks have columns,
    and none of what its first block does not: so a random block in the space without the pairs found goes the same
    way, until a pair beyond them would have been seen. If there is one, the search goes on with it.

    matrix: what `curvature_operator` or `open_shard` gives, or anything with num_rows and matvec. top, bottom are
    capped by P. block_size: vectors multiplied at once; by default 4 of
    an operator, of which each costs a product, and twice the larger of both numbers of a stored matrix, of which a pass
    costs the same for one as for many. max_columns: vectors of
    the basis, at which it restarts; more of them mean fewer products. watch: is called after each block of products
    with their number so far, and the largest residual of the pairs that are wanted over |λ|max, about; infinity while
    the basis is too small to hold them. memory: bytes that the basis and all beside it may take; None: half of what is
    free.

    Cost: on Hessians of trained nets some five to ten products a pair, checks included. Memory: the basis and its
    images, 16 · P · max_columns bytes, and half as much again at a restart.

    Raises:
        PipelineError: the residuals are above their bound after max_products; the products are too noisy for the
            tolerance, or not finite, or not those of a symmetric matrix; an option is wrong, or memory too small.
    """
    matrix = checked_matrix(matrix)
    check_count("top", top, minimum=0)
    check_count("bottom", bottom, minimum=0)
    check_number("tolerance", tolerance, above=0, below=1)
    check_count("max_products", max_products)
    check_count("block_size", block_size, or_null="what the matrix asks for")
    check_count("seed", seed, minimum=0)
    if top + bottom == 0:
        raise PipelineError("top=0 and bottom=0: ask for one pair at least.")
    top = min(top, matrix.num_rows)
    bottom = min(bottom, matrix.num_rows - top)
    own = getattr(matrix, "columns_per_pass", 2 * max(top, bottom))
    block_size = min(block_size or own, matrix.num_rows)
    check_count("max_columns", max_columns, minimum=top + bottom + 3 * block_size, or_null="by memory")
    room = available_memory() // 2 if memory is None else memory
    columns = max_columns or _columns_in_memory(room, matrix.num_rows, top + bottom, block_size)
    search = _Search(matrix, top, bottom, tolerance, max_products, block_size, columns, seed, watch)
    return search.run()


@dataclass
class _Search:
    """The search, which holds what it needs all along; `num_products` have been taken so far."""

    matrix: ProductMatrix
    top: int
    bottom: int
    tolerance: float
    max_products: int
    block_size: int
    max_columns: int
    seed: int
    watch: Watch | None = None
    num_products: int = 0

    def run(self) -> Eigenpairs:
        state = start(self.matrix.num_rows, self.block_size, self.seed)
        state, pairs = self._converge(state)
        while True:
            if state.num_columns == self.matrix.num_rows:
                return self._result(pairs)
            state, is_complete = self._look_beyond(pairs, state)
            if is_complete:
                return self._result(pairs)
            state, pairs = self._converge(state)

    def _converge(self, state: LanczosState) -> tuple[LanczosState, RitzPairs]:
        """Go on until all pairs have converged.

        Raises:
            PipelineError: they do not.
        """
        while True:
            state = self._advance(state)
            is_over = state.num_columns == self.matrix.num_rows or self.num_products >= self.max_products
            if state.num_columns < self.top + self.bottom:
                continue
            if is_over or self._seems_converged(state):
                pairs = ritz_pairs(state, self.top, self.bottom, self.tolerance)
                if pairs.converged or state.num_columns == self.matrix.num_rows:
                    return state, pairs
                if self.num_products >= self.max_products:
                    raise PipelineError(self._not_converged(pairs, state))

    def _seems_converged(self, state: LanczosState) -> bool:
        values, residuals = estimated_residuals(state, self.top, self.bottom)
        return bool((residuals <= self.tolerance * np.abs(values).max()).all())

    def _advance(self, state: LanczosState) -> LanczosState:
        """One pass, after a restart where the basis is full.

        Raises:
            PipelineError: the products are not those of a symmetric matrix to the tolerance.
        """
        if state.num_columns + state.block.shape[1] > self.max_columns:
            kept = kept_at_restart(self.top, self.bottom, self.block_size, self.max_columns)
            state = restart(state, *kept)
        self.num_products += state.block.shape[1]
        state = advance(state, self.matrix.matvec)
        if state.noise > self.tolerance * state.norm:
            relative = state.noise / state.norm
            raise PipelineError(
                f"products with the matrix are symmetric to {relative:.1e} of its largest eigenvalue only, and "
                f"tolerance={self.tolerance:g} asks for more: raise it to {10 * relative:.0e}, or compute in float64."
            )
        if self.watch is not None:
            self.watch(self.num_products, self._largest_residual(state))
        return state

    def _largest_residual(self, state: LanczosState) -> float:
        if state.num_columns < self.top + self.bottom:
            return float("inf")
        values, residuals = estimated_residuals(state, self.top, self.bottom)
        return float(residuals.max() / (np.abs(values).max() or 1.0))

    def _look_beyond(self, pairs: RitzPairs, before: LanczosState) -> tuple[LanczosState, bool]:
        """Search the space without the pairs, from a random block: the state then, and whether nothing is there."""
        images = self._images(pairs, before)
        rng = np.random.default_rng([self.seed, 1, self.num_products])
        block = random_block((pairs.vectors,), self.block_size, rng)
        state = replace(
            before, basis=(pairs.vectors,), images=(images,), projected=np.diag(pairs.values), block=block
        )
        known = len(pairs.values)
        num_passes = 0
        while True:
            state = self._advance(state)
            num_passes += 1
            full = state.num_columns == self.matrix.num_rows
            if state.num_columns < min(known + 2, self.matrix.num_rows) and not full:
                continue
            values, _ = estimated_residuals(state, self.top, self.bottom)
            if np.abs(values - pairs.values).max() > 2 * pairs.bound:
                return state, False
            if full or self._would_have_been_seen(state, pairs, num_passes):
                return state, True
            if self.num_products >= self.max_products:
                return state, False

    def _images(self, pairs: RitzPairs, before: LanczosState) -> Array:
        """The matrix times the vectors of pairs, by the images that are there."""
        weights = [block.T @ pairs.vectors for block in before.basis]
        return np.asarray(sum(image @ weight for image, weight in zip(before.images, weights, strict=True)))

    def _would_have_been_seen(self, state: LanczosState, pairs: RitzPairs, num_passes: int) -> bool:
        """Whether a pair beyond those found would show by now, at each end at which pairs are wanted.

        An eigenvalue beyond the outermost value that the search sees, at which the pairs end, would stand apart from
        the rest of the space by a gap. What the first block holds of its vector, about sqrt(b / P), has grown by a
        Chebyshev polynomial of the degree of the passes (Saad 2011, Numerical Methods for Large Eigenvalue Problems,
        section 6.6). Where there is no such gap, the outermost pair of the space itself has to converge.
        """
        wanted = self.top + bool(self.top), self.bottom + bool(self.bottom)
        inner, estimates = estimated_residuals(state, *wanted)
        low, high = np.linalg.eigvalsh(state.projected)[[0, -1]]
        gaps = []
        if self.top:
            index = len(inner) - self.top - 1
            gaps.append((index, pairs.values[self.bottom] - inner[index], inner[index] - low))
        if self.bottom:
            index = self.bottom
            gaps.append((index, inner[index] - pairs.values[self.bottom - 1], high - inner[index]))
        left = [index for index, gap, width in gaps if not self._has_grown(gap, width, num_passes)]
        if not left or (estimates[left] > pairs.bound).any():
            return not left
        return bool((ritz_pairs(state, *wanted, 1.0).residuals[left] <= pairs.bound).all())

    def _has_grown(self, gap: float, width: float, num_passes: int) -> bool:
        if gap <= 0:
            return False
        if width <= 0:
            return True
        start_angle = UNLUCKY * np.sqrt(self.matrix.num_rows / self.block_size)
        growth = (num_passes - 1) * np.arccosh(1 + 2 * gap / width)
        return bool(growth - np.log(2) >= np.log(start_angle * np.sqrt(2 * (gap + width) / gap)))

    def _result(self, pairs: RitzPairs) -> Eigenpairs:
        """The pairs, the largest first, with residuals by products of their own.

        Raises:
            PipelineError: they do not come out as small as before.
        """
        values, vectors = pairs.values[::-1].copy(), pairs.vectors[:, ::-1].copy()
        parts = [
            np.asarray(self.matrix.matvec(vectors[:, first : first + self.block_size]), np.float64)
            for first in range(0, len(values), self.block_size)
        ]
        self.num_products += len(values)
        residuals = np.linalg.norm(np.hstack(parts) - vectors * values, axis=0)
        if (residuals > 2 * pairs.bound + 1e-13 * np.abs(values).max(initial=0.0)).any():
            raise PipelineError(
                f"products with the same vector differ by {residuals.max():.1e}, and {pairs.bound:.1e} is allowed: "
                "raise tolerance, or compute in float64."
            )
        return Eigenpairs(values, vectors, residuals, True, self.num_products)

    def _not_converged(self, pairs: RitzPairs, state: LanczosState) -> str:
        above = pairs.residuals > pairs.bound
        return (
            f"{above.sum()} of {len(above)} eigenpairs have not converged in {self.num_products} products (the largest "
            f"residual is {pairs.residuals.max():.1e}, allowed is {pairs.bound:.1e}, products are symmetric to "
            f"{state.noise:.1e}): raise max_products={self.max_products}, tolerance={self.tolerance:g} or "
            f"max_columns={self.max_columns}."
        )


def _columns_in_memory(num_bytes: int, num_rows: int, wanted: int, block_size: int) -> int:
    """Vectors of the basis: as many as are of use, or as so many bytes hold.

    Raises:
        PipelineError: it does not hold the fewest that are needed.
    """
    fewest, best = wanted + 3 * block_size, 2 * wanted + BLOCKS_BESIDE * block_size
    each = 24 * num_rows  # a vector, its image, and half of both at a restart, in float64
    room = num_bytes // each
    if room < min(fewest, num_rows):
        raise PipelineError(
            f"{wanted} eigenpairs of P = {num_rows:,} weights need {format_bytes(fewest * each)} of memory for a "
            f"basis, {format_bytes(room * each)} may be taken: ask for fewer pairs, or block_size=1."
        )
    return int(min(best, max(room, fewest)))
