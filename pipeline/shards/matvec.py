"""Products of a stored matrix with vectors, in one pass over its tiles: what Lanczos spends its time in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from pipeline.shards.hdf5 import Array
from pipeline.shards.tile_grid import Tile, mirrored

NUM_PARTIAL_SUMS = 4  # sums that rows of tiles are dealt to, each taken by one thread at a time
MANY_TILES = 64  # from which on threads are worth their start


class TiledMatrix(Protocol):
    """A symmetric (P, P) matrix in (b, b) tiles of its lower triangle, as a `Shard` is: num_rows P, tile b."""

    @property
    def num_rows(self) -> int: ...

    @property
    def tile(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def tiles(self, indices: Iterable[Tile]) -> Iterator[tuple[Tile, Array]]:
        """These tiles, each cut to the matrix."""


def multiplied(matrix: TiledMatrix, vectors: Array, span: slice) -> Array:
    """The principal submatrix of the rows and columns `span`, times (n, m) or (n,) vectors; float64.

    Threads read, check and multiply tiles side by side, as many as the BLAS is allowed. Which tiles a sum is made of,
    and in which order sums are added, does not depend on how many there are: the bits are the same.
    Memory: LANES results, and a tile for each thread.
    """
    single = vectors.dtype == matrix.dtype
    full = np.zeros((matrix.num_rows, *vectors.shape[1:]), matrix.dtype if single else np.float64)
    full[span] = vectors
    tile_rows = range(span.start // matrix.tile, -(-span.stop // matrix.tile))
    lanes = [tile_rows[lane::NUM_PARTIAL_SUMS] for lane in range(NUM_PARTIAL_SUMS)]

    def product(lane: range) -> Array:
        return _of_tiles(matrix, full, [(i, j) for i in lane for j in tile_rows if j <= i])

    if len(tile_rows) * (len(tile_rows) + 1) // 2 < MANY_TILES:
        parts = map(product, lanes)
        return sum(parts, np.zeros(full.shape))[span]
    total = np.zeros(full.shape)
    with ThreadPoolExecutor(_num_threads()) as threads, threadpool_limits(1, "blas"):
        for part in threads.map(product, lanes):
            total += part
    return total[span]


def _of_tiles(matrix: TiledMatrix, vectors: Array, indices: list[Tile]) -> Array:
    """What some tiles give of the product, each used for both triangles."""
    out: Array = np.zeros(vectors.shape)
    b = matrix.tile
    for (i, j), tile in matrix.tiles(indices):
        r, c = slice(i * b, i * b + tile.shape[0]), slice(j * b, j * b + tile.shape[1])
        if i == j:
            out[r] += mirrored(tile) @ vectors[c]
        else:
            out[r] += tile @ vectors[c]
            out[c] += tile.T @ vectors[r]
    return out


def _num_threads() -> int:
    """As many as matrix products may take here: a Dask task is allowed one."""
    allowed = [int(blas["num_threads"]) for blas in threadpool_info() if blas["user_api"] == "blas"]
    return min([*allowed, len(os.sched_getaffinity(0))])
