"""The search for eigenpairs at both ends of a spectrum, and for pairs that it may have missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.spectrum import rows as on
from pipeline.spectrum.lanczos import Lanczos, Ritz, kept_at_restart, random_start, start_from
from pipeline.spectrum.orthogonal import orthonormal
from pipeline.spectrum.protocol import Array, ProductMatrix, Watch
from pipeline.spectrum.rows import Rows

# The probability that a random block holds less of a hidden eigenvector than is taken for granted.
FAILURES = 1e-4
# Vectors of the block that looks for hidden pairs: few, since many passes cost less than many vectors.
SEARCHED_AT_ONCE = 2
FEWEST_PASSES = 3  # of that search: fewer do not tell how wide the rest of the spectrum is
TARGET = 0.7  # of the tolerance, to which pairs converge: the rest is left for rounding
MOST_REFINEMENTS = 3
UNKNOWN = 0.1  # share of random vectors in a first block of vectors that are given
ROUNDING = 1e-13  # of the largest eigenvalue, that a residual in float64 may be above its bound


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at both ends of a spectrum and their vectors, the largest first.

    residuals: ‖H v − λ v‖, from products with the vectors that are returned: an eigenvalue lies within that of λ.
    complete: whether a search from a random block in the space without these vectors came to its end and found no
    pair beyond them; it fails with a probability of about 1e-4. num_products: vectors that were multiplied.
    """

    values: Array  # (w,) descending: `top`, then `bottom`
    vectors: Array  # (P, w) orthonormal
    residuals: Array  # (w,)
    complete: bool
    num_products: int

    @staticmethod
    def checked(pairs: Any, num_rows: int) -> Eigenpairs:
        """Refuse what are no eigenpairs, or those of another matrix.

        Raises:
            PipelineError: they are not.
        """
        if not isinstance(pairs, Eigenpairs):
            raise PipelineError(
                f"pairs is of type {type(pairs).__name__}: give what pipeline.eigenpairs returns for this matrix."
            )
        if len(pairs.vectors) != num_rows:
            raise PipelineError(
                f"pairs are of P = {len(pairs.vectors):,} weights, the matrix is of {num_rows:,}."
            )
        return pairs


@dataclass
class PairSearch:
    """The search, which holds what it needs all along; `num_products` have been taken so far."""

    matrix: ProductMatrix
    top: int
    bottom: int
    tolerance: float
    max_products: int
    block_size: int
    max_columns: int
    seed: int
    like: Rows | None
    watch: Watch | None = None
    num_products: int = 0
    largest: float = 0.0  # |λ| that is known to be there: a basis that was restarted holds one end alone

    def run(self, first: Rows | None) -> Eigenpairs:
        """The pairs. first: rows that are close to eigenvectors.

        Raises:
            PipelineError: they do not converge, or products are too noisy.
        """
        state = self._begin(first)
        self._converge(state)
        while not (state.is_full or self._is_complete(state)):
            self._converge(state)
        for _ in range(MOST_REFINEMENTS):
            found, state = self._checked(state)
            if found is not None:
                return found
            self._converge(state)
        raise PipelineError(self._too_noisy(state))

    def _begin(self, first: Rows | None) -> Lanczos:
        state = random_start(self.matrix.num_rows, self.block_size, self.seed, self.max_columns, self.like)
        if first is not None:
            rng = np.random.default_rng([self.seed, 4])
            vectors = on.empty(len(first), self.matrix.num_rows, self.like)
            on.assign(vectors, first)
            weights = rng.standard_normal((len(first), len(state.block))) / np.sqrt(len(first))
            on.assign(state.block, UNKNOWN * state.block + on.combine(weights, vectors))
            orthonormal(state.block, rng)
        return state

    def _images(self, vectors: Rows) -> Rows:
        images = on.copied(vectors)
        for begin in range(0, len(vectors), self.block_size):
            part = slice(begin, begin + self.block_size)
            on.assign(images[part], self.matrix.matvec(vectors[part].T).T)
        self.num_products += len(vectors)
        return images

    def _converge(self, state: Lanczos) -> None:
        """Go on until all pairs have converged, as far as the basis tells.

        Raises:
            PipelineError: they do not.
        """
        while True:
            if state.num_columns >= self.top + self.bottom:
                found = self._ritz(state, self.top, self.bottom)
                bound = TARGET * self.tolerance * found.largest
                left = found.residuals > bound
                if not left.any() or state.is_full:
                    return
                if self.num_products >= self.max_products:
                    raise PipelineError(self._not_converged(found, state))
                if len(state.coupling) > self.block_size:
                    state.choose(found.weights[:, left] / found.residuals[left])
            if state.num_columns + len(state.coupling) > self._fullest(state):
                state.restart(*self._kept)
            self._advance(state, self.block_size)

    @property
    def _kept(self) -> tuple[int, int]:
        """Of each end, Ritz vectors that outlive a restart."""
        return kept_at_restart(self.top, self.bottom, self.block_size, self.max_columns)

    def _converged(self, state: Lanczos) -> tuple[int, int]:
        """Of each end, Ritz pairs from the outermost one inwards that have converged, wanted ones or not.

        Other vectors of the basis may hold a part of a hidden eigenvector: in the space without them it is none.
        """
        most = self._kept
        found = self._ritz(state, *most)
        bound = self.tolerance * found.largest
        at_top = np.cumprod((found.residuals <= bound)[::-1][: most[0]]).sum()
        at_bottom = np.cumprod((found.residuals <= bound)[: most[1]]).sum()
        return max(self.top, int(at_top)), max(self.bottom, int(at_bottom))

    def _fullest(self, state: Lanczos) -> int:
        """Rows beside which there is room for one more block."""
        return max(self.max_columns, self.top + self.bottom + 2 * len(state.coupling))

    def _advance(self, state: Lanczos, width: int) -> None:
        """Multiply a block.

        Raises:
            PipelineError: the products are not those of a symmetric matrix to the tolerance.
        """
        self.num_products += min(width, len(state.coupling))
        state.advance(self.matrix.matvec, width)
        if state.noise > self.tolerance * state.norm:
            relative = state.noise / state.norm
            raise PipelineError(
                f"products with the matrix are symmetric to {relative:.1e} of its largest eigenvalue only, and "
                f"tolerance={self.tolerance:g} asks for more: raise it to {10 * relative:.0e}, or compute in float64."
            )
        if self.watch is not None:
            self.watch(self.num_products, self._largest_residual(state))

    def _ritz(self, state: Lanczos, num_top: int, num_bottom: int) -> Ritz:
        """The outermost Ritz pairs, and |λ|max as far as any basis has told."""
        found = state.ritz(num_top, num_bottom)
        self.largest = max(self.largest, found.largest, state.norm)
        return found._replace(largest=self.largest)

    def _largest_residual(self, state: Lanczos) -> float:
        if state.num_columns < self.top + self.bottom:
            return float("inf")
        found = self._ritz(state, self.top, self.bottom)
        return float(found.residuals.max() / (found.largest or 1.0))

    def _is_complete(self, state: Lanczos) -> bool:
        """Search the space without the basis, from a random block: whether no pair beyond those found is there.

        Raises:
            PipelineError: max_products have been taken before that is known.
        """
        width = min(self.block_size, SEARCHED_AT_ONCE)
        state.restart(*self._converged(state))
        state.narrow(0)
        before, beyond = self._ritz(state, self.top, self.bottom), state.num_columns
        state.add_random(width, np.random.default_rng([self.seed, 1, self.num_products]))
        num_passes = 0
        while True:
            if state.num_columns + len(state.coupling) > self._fullest(state):
                part = (state.num_columns - beyond) // 3
                state.restart(part if self.top else 0, part if self.bottom else 0, beyond)
                state.narrow(width)
            self._advance(state, width)
            num_passes += 1
            values = self._ritz(state, self.top, self.bottom).values
            if np.abs(values - before.values).max() > 2 * self.tolerance * before.largest:
                return False
            if state.is_full or self._would_have_been_seen(state, before, beyond, num_passes, width):
                return True
            if self.num_products >= self.max_products:
                raise PipelineError(
                    f"{self.top + self.bottom} eigenpairs have converged, but not the search for pairs beyond them: "
                    f"{self.num_products} products have been taken, raise max_products={self.max_products}."
                )

    def _would_have_been_seen(
        self, state: Lanczos, before: Ritz, beyond: int, num_passes: int, width: int
    ) -> bool:
        """Whether a pair beyond those found would show by now, at each end at which pairs are wanted.

        beyond: from which row on the basis is of the search alone. An eigenvalue beyond the
        outermost one that the search sees there, at which the pairs end, would stand apart from the rest of that space
        by a gap. What the first block holds of its vector, about sqrt(b / P), has grown by a
        Chebyshev polynomial of the degree of the passes (Saad 2011, Numerical Methods for Large Eigenvalue Problems,
        section 6.6). Where there is no such gap, the outermost pair of that space has to converge.
        """
        if num_passes < FEWEST_PASSES:
            return False
        seen, vectors = np.linalg.eigh(state.projected[beyond:, beyond:])
        residuals = np.linalg.norm(state.coupling[:, beyond:] @ vectors[:, [-1, 0]], axis=0)
        spread, bound = seen[-1] - seen[0], self.tolerance * before.largest
        gaps = []
        if self.top:
            gaps.append((before.values[self.bottom] - seen[-1], residuals[0]))
        if self.bottom:
            gaps.append((seen[0] - before.values[self.bottom - 1], residuals[1]))
        return all(
            residual <= bound or self._has_grown(gap, spread, num_passes, width) for gap, residual in gaps
        )

    def _has_grown(self, gap: float, spread: float, num_passes: int, width: int) -> bool:
        if gap <= 0:
            return False
        if spread <= 0:
            return True
        unlucky = max(10.0, FAILURES ** (-1 / width))
        start_angle = unlucky * np.sqrt(self.matrix.num_rows / width)
        growth = (num_passes - 1) * np.arccosh(1 + 2 * gap / spread)
        return bool(growth - np.log(2) >= np.log(start_angle * np.sqrt(2 * (gap + spread) / gap)))

    def _checked(self, state: Lanczos) -> tuple[Eigenpairs | None, Lanczos]:
        """The pairs, with residuals by products of their own; where these are too large, a basis of their vectors."""
        bound = self.tolerance * self._ritz(state, self.top, self.bottom).largest * (1 + 1e-7)
        state.restart(self.top, self.bottom)
        vectors = state.basis
        orthonormal(vectors, None)
        images = self._images(vectors)
        values = np.diag(on.inner(vectors, images)).copy()
        residuals = on.lengths(images - on.combine(np.diag(values), vectors))
        if (residuals <= bound + ROUNDING * np.abs(values).max(initial=0.0)).all():
            order = np.argsort(-values, kind="stable")
            found = _columns(vectors, order)
            return Eigenpairs(values[order], found, residuals[order], True, self.num_products), state
        return None, start_from(images, state.rows, len(vectors), self.seed + self.num_products)

    def _too_noisy(self, state: Lanczos) -> str:
        found = self._ritz(state, self.top, self.bottom)
        above = found.residuals > self.tolerance * found.largest
        relative = found.residuals.max() / found.largest
        return (
            f"{above.sum()} of {len(above)} eigenpairs do not come below tolerance={self.tolerance:g}: products with "
            f"their vectors leave residuals of up to {relative:.1e} of the largest eigenvalue, which is rounding: "
            f"raise it to {2 * relative:.0e}, or compute in float64."
        )

    def _not_converged(self, found: Ritz, state: Lanczos) -> str:
        above, largest = found.residuals > self.tolerance * found.largest, found.largest or 1.0
        return (
            f"{above.sum()} of {len(above)} eigenpairs have not converged in {self.num_products} products (residuals "
            f"are up to {found.residuals.max() / largest:.1e} of the largest eigenvalue, {self.tolerance:.1e} is "
            f"allowed, products are symmetric to {state.noise / largest:.1e}): raise max_products={self.max_products}, "
            f"tolerance={self.tolerance:g} or max_columns={self.max_columns}."
        )


def _columns(vectors: Rows, order: NDArray[np.intp]) -> Array:
    """The rows as columns of a NumPy array, (P, w)."""
    result = np.empty(
        (vectors.shape[1], len(order)), np.dtype(str(vectors.dtype).removeprefix("torch.")), "F"
    )
    on.assign(result.T, vectors[order])
    return result
