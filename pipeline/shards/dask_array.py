"""A stored matrix as a Dask array: chunks are read, and checked, when they are needed."""

from __future__ import annotations

from typing import Any, Protocol

import dask.array as da
import numpy as np

from pipeline.shards.hdf5 import Array


class BlockMatrix(Protocol):
    """A symmetric (P, P) matrix of which blocks can be read, as a `Shard` is: num_rows P, tile b."""

    @property
    def num_rows(self) -> int: ...

    @property
    def tile(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def block(self, rows: slice, cols: slice) -> Array: ...


def lazy_matrix(shard: BlockMatrix, tiles_per_chunk: int) -> Any:
    """The symmetric matrix, (P, P), in chunks of tiles_per_chunk tiles each way.

    A task opens the file by its path, so that threads, processes and other machines can take it.
    """
    size, num_rows = shard.tile * tiles_per_chunk, shard.num_rows
    lengths = tuple(min(size, num_rows - start) for start in range(0, num_rows, size))
    meta = np.empty((0, 0), shard.dtype)
    return da.map_blocks(_chunk, shard, chunks=(lengths, lengths), dtype=shard.dtype, meta=meta)


def _chunk(shard: BlockMatrix, block_info: dict[Any, Any]) -> Array:
    rows, cols = (slice(*place) for place in block_info[None]["array-location"])
    return shard.block(rows, cols)
