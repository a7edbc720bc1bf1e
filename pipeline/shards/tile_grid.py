"""The tiles in which a symmetric matrix is stored: which there are, and which of their entries are given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.layout import Layout
from pipeline.shards.tile_store import Array
from pipeline.shards.tile_store import Tile as Tile

TILE = 512
BYTES_TO_FIND_A_TILE = 24  # of HDF5's index of chunks, at most, for those above the diagonal too
ALL, LAYER = "all", "layer"


@dataclass(frozen=True, eq=False)
class TileGrid:
    """The tiles (i, j), j <= i, of (b, b) entries that touch the lower triangle of a (P, P) matrix.

    num_rows: P. size: b; the last row and the last column of tiles are cut at P. layers: (P,), increasing, the layer of
    each row, where the matrix is zero outside the diagonal blocks of the layers; else None.
    """

    num_rows: int
    size: int
    layers: Array | None = None

    @staticmethod
    def of(layout: Layout, tile: int = TILE, blocks: str = ALL) -> TileGrid:
        spans = layout.layers().values()
        layers = np.repeat(np.arange(len(spans)), [span.stop - span.start for span in spans])
        size = min(tile, layout.num_parameters)
        return TileGrid(layout.num_parameters, size, layers if blocks == LAYER else None)

    @property
    def num_tile_rows(self) -> int:
        return -(-self.num_rows // self.size)

    def span(self, k: int) -> slice:
        """The rows of the matrix in row k of tiles, or its columns in column k."""
        return slice(k * self.size, min((k + 1) * self.size, self.num_rows))

    def all_tiles(self) -> list[Tile]:
        """All (i, j), j <= i, row by row."""
        return [(i, j) for i in range(self.num_tile_rows) for j in range(i + 1)]

    def has(self, tile: Tile) -> bool:
        i, j = tile
        return 0 <= j <= i < self.num_tile_rows

    def is_outside(self, tile: Tile) -> bool:
        """Whether a tile touches no diagonal block: all its columns are of earlier layers. It is not stored."""
        if self.layers is None:
            return False
        i, j = tile
        return bool(self.layers[self.span(j).stop - 1] < self.layers[self.span(i).start])

    @property
    def num_stored(self) -> int:
        """How many tiles a whole file holds, without looking at each of them."""
        n = self.num_tile_rows
        if self.layers is None:
            return n * (n + 1) // 2
        starts = self.layers[:: self.size]
        ends = self.layers[np.minimum(np.arange(1, n + 1) * self.size, self.num_rows) - 1]
        first = np.searchsorted(
            ends, starts
        )  # the first column of tiles that is stored, in each row of tiles
        return int((np.arange(n) - first + 1).sum())

    def tile_mask(self, part: Iterable[Tile] | None = None) -> Array:
        """Which tiles a file holds, (n, n) booleans for n rows of tiles; part: only these, where they are given."""
        chosen: Array = np.zeros((self.num_tile_rows, self.num_tile_rows), bool)
        for tile in self.all_tiles() if part is None else part:
            chosen[tile] = not self.is_outside(tile)
        return chosen

    def entry_mask(self, rows: slice, cols: slice) -> Array:
        """Which of the entries rows x cols are given: those of the lower triangle, and of the layers' blocks."""
        lower = np.arange(rows.start, rows.stop)[:, None] >= np.arange(cols.start, cols.stop)
        return lower if self.layers is None else lower & (self.layers[rows, None] == self.layers[cols])

    def num_entries(self, tile: Tile) -> int:
        """How many entries of the lower triangle lie in a tile."""
        height, width = (int(span.stop - span.start) for span in map(self.span, tile))
        return height * (height + 1) // 2 if tile[0] == tile[1] else height * width


def file_size(
    layout: Layout, itemsize: int, blocks: str = ALL, tile: int = TILE, part: Iterable[Tile] | None = None
) -> int:
    """Bytes of a shard, at most: the tiles of its triangle, the gradient, and 1 MB for all the rest."""
    grid = TileGrid.of(layout, tile, blocks)
    num_tiles = grid.num_stored if part is None else int(grid.tile_mask(part).sum())
    index = BYTES_TO_FIND_A_TILE * grid.num_tile_rows**2
    return (num_tiles * grid.size**2 + grid.num_rows) * itemsize + index + 2**20


def mirrored(tile: Array) -> Array:
    """A tile on the diagonal, with its lower part mirrored to the upper."""
    return np.where(np.tri(len(tile), dtype=bool), tile, tile.T)
