"""Thick-restart block Lanczos: eigenpairs at both ends of a spectrum, in few products with the matrix.

The matrix is seen only through its product with a block of vectors. What is kept are rows: an orthonormal basis V, and
behind it an orthonormal block N of directions that come next, with

    H V = V T + N C

to rounding, where T = Vᵀ H V and C are small. So no image H v is kept, and the residual of a Ritz vector V s is ‖C s‖.
A step multiplies some rows of N, which join the basis; what is new in their images joins N, and the rows of N that
were not multiplied are made orthogonal to it. Not the other way round: a step would then be blind to them, and where
a hidden eigenvector lies close to one whose pair has converged, it is these rows that hold it. Directions that break
down (low rank, multiple eigenvalues) are replaced by random ones, and the relation still holds, with zeros in C.

All but the products costs 4 P k FLOP a vector and twice the bytes of the basis a block, for k rows of the basis: an
image is freed first of its largest components, those along the newest rows (after a restart along all), and then
once of what rounding has left along all rows; it is done again where that was much.

The first block is random, so the same passes give the density: the eigenvalues of the projected matrix are nodes,
the squared components of its eigenvectors in the first block are weights of a Gauss quadrature, for each vector of
the block, exact for polynomials of degree below twice the number of passes. All vectors of the block share all nodes,
so few passes resolve what takes a recurrence for each vector many: at P = 2,410, 20 vectors in 8 passes came nearer
to the density of all eigenvalues than 8 vectors in 64 passes of their own.

Sources: Golub and Underwood 1977, "The block Lanczos method for computing eigenvalues"; Wu and Simon 2000,
doi:10.1137/S0895479898334605 (thick restart); Stathopoulos and Wu 2002, doi:10.1137/S1064827500370883 (a block made
orthonormal by its Gram matrix); Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974 (stochastic Lanczos quadrature);
Golub and Meurant 2010, "Matrices, Moments and Quadrature" (block quadrature).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.spectrum import rows as on
from pipeline.spectrum.orthogonal import next_block, orthogonalize, random_block
from pipeline.spectrum.protocol import NOT_FINITE, Array, Matvec, Quadrature
from pipeline.spectrum.rows import Rows


class Ritz(NamedTuple):
    """Ritz pairs, ascending, of which no vector is formed: these are V times weights."""

    values: Array  # (w,)
    residuals: Array  # (w,) ‖H v − θ v‖, to rounding of the products
    weights: Array  # (k, w)
    largest: float  # |θ| of all Ritz values


@dataclass
class Lanczos:
    """All that the iteration knows between two products: pickled and loaded, it goes on bit for bit."""

    rows: Rows  # (capacity, P) the basis V, then N, then room
    projected: Array  # (k, k) T
    coupling: Array  # (q, k) C
    norm: float  # largest ‖H q‖ seen: a lower bound of |λ|max
    noise: float  # largest difference between Vᵀ (H q) and (H V)ᵀ q seen: how far products are from symmetric
    num_passes: int
    seed: int

    @property
    def num_columns(self) -> int:
        """k, the rows of the basis."""
        return len(self.projected)

    @property
    def basis(self) -> Rows:
        return self.rows[: self.num_columns]

    @property
    def block(self) -> Rows:
        """N."""
        return self.rows[self.num_columns : self.num_columns + len(self.coupling)]

    @property
    def is_full(self) -> bool:
        """Whether the basis is the whole space."""
        return bool(self.num_columns == self.rows.shape[1])

    def advance(self, matvec: Matvec, width: int) -> None:
        """Multiply the first `width` rows of N: they join the basis, and what is new in their images comes first in N.

        Raises:
            PipelineError: the product holds NaN or infinity.
        """
        old, width = self.num_columns, min(width, len(self.coupling))
        taken = old + width
        image = self._image(matvec, self.rows[old:taken])
        # (k + width, width)
        column = orthogonalize(self.rows[:taken], image, self._first_coupled(width), self.norm)
        expected = self.coupling[:width].T
        self.noise = max(self.noise, float(np.linalg.norm(column[:old] - expected, axis=0).max(initial=0.0)))
        self._project(column, expected, width)
        rng = np.random.default_rng([self.seed, self.num_passes + 1])
        rest = on.copied(self.rows[taken : old + len(self.coupling)])
        new = self.rows[taken : min(taken + width, self.rows.shape[1])]
        next_block(self.rows[:taken], image, new, self.norm, rng)
        coupled = np.hstack([np.zeros((len(new), old)), on.inner(new, image)])
        self._put_behind(coupled, rest, np.pad(self.coupling[width:], [(0, 0), (0, width)]), rng)
        self.num_passes += 1

    def _put_behind(self, coupled: Array, rest: Rows, coupling: Array, rng: np.random.Generator) -> None:
        """N becomes the new rows that lie behind the basis, and behind these what the rest adds to them.

        coupled: (m, k) C of the new rows. coupling: (r, k) C of the rest.
        """
        self.coupling = coupled
        if not len(rest):
            return
        taken, together = self.num_columns, self.num_columns + len(coupled)
        added = self.rows[together : min(together + len(rest), self.rows.shape[1])]
        shares = orthogonalize(self.rows[:together], rest, taken, 1.0)[taken:]
        next_block(self.rows[:together], rest, added, 1.0, rng)
        self.coupling = np.vstack([coupled + shares @ coupling, on.inner(added, rest) @ coupling])

    def _image(self, matvec: Matvec, vectors: Rows) -> Rows:
        image = on.copied(vectors)
        on.assign(image, matvec(vectors.T).T)
        norms = on.lengths(image)
        if not np.isfinite(norms).all():
            raise PipelineError(NOT_FINITE)
        self.norm = max(self.norm, float(norms.max(initial=0.0)))
        return image

    def _first_coupled(self, width: int) -> int:
        """From which row on the images of the block are expected to have large components."""
        coupled = np.flatnonzero(self.coupling[:width].any(axis=0))
        return int(coupled[0]) if len(coupled) else self.num_columns

    def _project(self, column: Array, expected: Array, width: int) -> None:
        """T of the basis with the block."""
        old = self.num_columns
        projected = np.zeros((old + width, old + width))
        projected[:old, :old] = self.projected
        projected[:old, old:] = (column[:old] + expected) / 2
        projected[old:, :old] = projected[:old, old:].T
        own = column[old : old + width]
        projected[old:, old:] = (own + own.T) / 2
        self.projected = projected

    def restart(self, num_top: int, num_bottom: int, first: int = 0) -> None:
        """Shrink the basis to the outermost Ritz vectors, in place; N stays, orthogonal to them as before.

        With `first` the rows before it stay, and the Ritz vectors are those of the rows from it on. Of the others, what
        the images of the rows that stay have components along goes behind N.
        """
        values, every = np.linalg.eigh(self.projected[first:, first:])
        chosen = _ends(len(values), num_top, num_bottom)
        rotation, others = every[:, chosen], np.delete(every, chosen, axis=1)
        directions, coupled = self._coupled_to(others, first)
        block, behind = on.copied(self.block), on.combine(directions, self.basis[first:])
        on.rotate(self.basis[first:], rotation)
        whole = np.eye(self.num_columns, first + rotation.shape[1])
        whole[first:, first:] = rotation
        self.projected = whole.T @ self.projected @ whole
        self.coupling = np.vstack([self.coupling @ whole, np.pad(coupled, [(0, 0), (0, rotation.shape[1])])])
        on.assign(self.block[: len(block)], block)
        on.assign(self.block[len(block) :], behind)

    def _coupled_to(self, others: Array, first: int) -> tuple[Array, Array]:
        """Directions among others, (s, r) over the rows from `first` on, and C of the rows before, (r, first)."""
        directions, coupled = self._beyond_rounding(others.T @ self.projected[first:, :first])
        return others @ directions, coupled

    def _beyond_rounding(self, components: Array) -> tuple[Array, Array]:
        """Directions, (s, r), in which components of images, (s, k), are more than rounding; and these, (r, k)."""
        left, sizes, right = np.linalg.svd(components, full_matrices=False)
        number = int((sizes > 4 * on.epsilon(self.rows) * self.norm).sum())
        return left[:, :number], sizes[:number, None] * right[:number]

    def narrow(self, first: int) -> None:
        """Turn the rows of N from `first` on so that as few as possible have components of images, and keep these."""
        directions, coupled = self._beyond_rounding(self.coupling[first:])
        on.rotate(self.block[first:], directions)
        self.coupling = np.vstack([self.coupling[:first], coupled])

    def choose(self, weights: Array) -> None:
        """Turn N so that its first rows are those that matter most to V times weights (k, w)."""
        if len(self.coupling) > 1:
            turned = np.linalg.svd(self.coupling @ weights)[0]
            on.rotate(self.block, turned)
            self.coupling = turned.T @ self.coupling

    def add_random(self, num_rows: int, rng: np.random.Generator) -> None:
        """Put random rows before those of N, which are made orthogonal to them."""
        old, rest = self.num_columns, on.copied(self.block)
        new = self.rows[old : min(old + num_rows, self.rows.shape[1])]
        random_block(self.basis, new, rng)
        self._put_behind(np.zeros((len(new), old)), rest, self.coupling, rng)

    def ritz(self, num_top: int, num_bottom: int) -> Ritz:
        """The outermost Ritz pairs."""
        values, rotation = np.linalg.eigh(self.projected)
        chosen = _ends(len(values), num_top, num_bottom)
        weights = rotation[:, chosen]
        residuals = np.linalg.norm(self.coupling @ weights, axis=0)
        return Ritz(values[chosen], residuals, weights, float(np.abs(values).max(initial=0.0)))


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


def random_start(
    num_rows: int, block_size: int, seed: int, max_columns: int | None = None, like: Rows | None = None
) -> Lanczos:
    """An empty basis and a random orthonormal block of min(block_size, P) rows.

    max_columns: rows for which there is room beside two blocks; None is P. like: a tensor on the device and in the
    dtype of the rows; None is NumPy and float64.
    """
    block_size = min(block_size, num_rows)
    capacity = min(num_rows, max_columns or num_rows) + 3 * block_size
    rows = on.empty(min(capacity, num_rows), num_rows, like)
    random_block(rows[:0], rows[:block_size], np.random.default_rng([seed, 0]))
    return Lanczos(rows, np.zeros((0, 0)), np.zeros((block_size, 0)), 0.0, 0.0, 0, seed)


def start_from(images: Rows, rows: Rows, num_known: int, seed: int) -> Lanczos:
    """A basis of the first `num_known` of rows, orthonormal, whose images are there; N is what these add.

    rows: with room. images: (num_known, P) are overwritten.
    """
    norm = float(on.lengths(images).max(initial=0.0))
    known = rows[:num_known]
    projected = orthogonalize(known, images, 0, norm)
    num_new = min(num_known, rows.shape[1] - num_known, len(rows) - num_known)
    new = rows[num_known : num_known + num_new]
    next_block(known, images, new, norm, np.random.default_rng([seed, 0]))
    noise = float(np.linalg.norm(projected - projected.T, axis=0).max(initial=0.0))
    return Lanczos(rows, (projected + projected.T) / 2, on.inner(new, images), norm, noise, 0, seed)


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

    Basis and residuals are in float64. It ends after `max_passes` products at the latest; `converged` of the result
    says which of both it was. With min_passes it goes on that far for the quadrature, which is of the passes before the
    first restart.
    num_top + num_bottom ≤ P. With block_size ≥ num_top, num_bottom no copy of a wanted multiple eigenvalue
    is missed, whatever its multiplicity (a Krylov space finds at most block_size copies of one).
    """
    block_size, max_columns = min(block_size, num_rows), min(max_columns, num_rows)
    assert num_top + num_bottom <= max_columns, "a basis too short to hold what is wanted would never end"
    state = random_start(num_rows, block_size, seed, max_columns)
    widths: list[int] = []
    quadrature: Quadrature | None = None
    while True:
        widths.append(len(state.coupling))
        state.advance(matvec, block_size)
        if state.num_columns >= num_top + num_bottom and (state.is_full or state.num_passes >= min_passes):
            found = state.ritz(num_top, num_bottom)
            bound = tolerance * found.largest
            if (found.residuals <= bound).all() or state.is_full or state.num_passes >= max_passes:
                quadrature = quadrature or quadrature_of(state.projected, widths, num_rows)
                vectors = on.combine(found.weights, state.basis).T
                return RitzPairs(found.values, vectors, found.residuals, bound, state.num_passes, quadrature)
        if state.num_columns + len(state.coupling) > max_columns:
            quadrature = quadrature or quadrature_of(state.projected, widths, num_rows)
            state.restart(*kept_at_restart(num_top, num_bottom, block_size, max_columns))


def kept_at_restart(num_top: int, num_bottom: int, block_size: int, max_columns: int) -> tuple[int, int]:
    """How many Ritz vectors of each end outlive a restart: those wanted, and half of the room beside them."""
    spare = max(0, max_columns - block_size - num_top - num_bottom) // 2
    at_top = spare * num_top // (num_top + num_bottom)
    return num_top + at_top, num_bottom + spare - at_top


def _ends(num_values: int, num_top: int, num_bottom: int) -> NDArray[np.intp]:
    positions = np.arange(num_values)
    return np.concatenate([positions[:num_bottom], positions[max(num_bottom, num_values - num_top) :]])
