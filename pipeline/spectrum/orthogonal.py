"""Rows made orthogonal to a basis and orthonormal among themselves, in the precision that they are in."""

from __future__ import annotations

import numpy as np

from pipeline.spectrum import rows as on
from pipeline.spectrum.protocol import Array
from pipeline.spectrum.rows import Rows

MOST_ROUNDS = 4  # of orthogonalization; the first two nearly always do
MUCH = 0.5  # a round that leaves less than this of a vector is repeated
UNEVEN = 0.1  # rows of a block whose lengths differ by more are made orthogonal to the basis again
BREAKDOWN = 100 * np.finfo(np.float64).eps  # a new direction shorter than this times ‖H‖ is rounding


def orthogonalize(basis: Rows, vectors: Rows, first: int, norm: float) -> Array:
    """Take out of vectors (m, P) their components along the basis (k, P), in place: the components, (k, m).

    first: from which row of the basis on they are large; these are taken out first, so that one round over all rows
    leaves what rounding does. norm: of the matrix, beside which a vector may be nothing but rounding.
    """
    total = np.zeros((len(basis), len(vectors)))
    if not len(basis):
        return total
    large = basis[first:]
    if len(large):
        total[first:] = on.inner(large, vectors)
        on.subtract(vectors, total[first:], large)
    before = on.lengths(vectors)
    shortest = _shortest(vectors, norm)
    for _ in range(MOST_ROUNDS - 1):
        part = on.inner(basis, vectors)
        on.subtract(vectors, part, basis)
        total += part
        left = on.lengths(vectors)
        if ((left >= MUCH * before) | (left <= shortest)).all():
            break
        before = left
    return total


def next_block(basis: Rows, image: Rows, block: Rows, norm: float, rng: np.random.Generator) -> None:
    """Fill `block` with orthonormal rows orthogonal to the basis: what is new in the image, then random ones.

    image: (m, P) orthogonal to the basis. The directions come from its Gram matrix, the longest first; those that it
    does not resolve are looked at again when the longer ones are taken out.
    """
    found, left = 0, image
    shortest, resolved = _shortest(image, norm), on.epsilon(image) ** (1 / 3)
    while found < len(block):
        squares, directions = np.linalg.eigh(on.inner(left, left))
        sizes, directions = np.sqrt(squares[::-1].clip(0)), directions[:, ::-1]
        number = int((sizes > max(shortest, resolved * sizes[0])).sum())
        taken = min(number, len(block) - found)
        if not taken:
            break
        new = block[found : found + taken]
        on.assign(new, on.combine(directions[:, :taken] / sizes[:taken], left))
        if found or sizes[taken - 1] < UNEVEN * sizes[0]:
            _take_out(basis, block[:found], new)
        _normalize(new)
        found += taken
        if number == len(sizes):
            break
        left = on.combine(directions[:, number:], left)
        for _ in range(2):
            _take_out(basis, block[:found], left)
    random_block(basis, block, rng, found)


def random_block(basis: Rows, block: Rows, rng: np.random.Generator, found: int = 0) -> None:
    """Fill `block` from row `found` on with random orthonormal rows, orthogonal to the basis and to those before."""
    new = block[found:]
    if not len(new):
        return
    on.random_rows(new, rng)
    for _ in range(3):
        _take_out(basis, block[:found], new)
        _normalize(new)


def orthonormal(rows: Rows, rng: np.random.Generator | None) -> None:
    """Make rows orthonormal, in place; those that depend on others are replaced by random ones.

    Without rng they nearly are so already.
    """
    if rng is None:
        _normalize(rows)
        return
    given = on.copied(rows)
    next_block(rows[:0], given, rows, float(on.lengths(given).max(initial=0.0)), rng)


def _take_out(basis: Rows, others: Rows, vectors: Rows) -> None:
    for rows in (basis, others):
        if len(rows):
            on.subtract(vectors, on.inner(rows, vectors), rows)


def _normalize(rows: Rows) -> None:
    """Make rows orthonormal that nearly are so, up to their lengths, in place."""
    sizes = on.lengths(rows)
    gram = on.inner(rows, rows) / np.outer(sizes, sizes)
    values, vectors = np.linalg.eigh(gram)
    root = vectors / np.sqrt(values.clip(on.epsilon(rows))) @ vectors.T
    on.rotate(rows, root / sizes[:, None])


def _shortest(rows: Rows, norm: float) -> float:
    """The length of a vector that is rounding beside the norm of the matrix."""
    epsilon = on.epsilon(rows)
    return norm * (BREAKDOWN if epsilon < 1e-12 else 2 * epsilon)
