"""Shards: symmetric matrices on disk, a triangle of tiles in an HDF5 file.

A shard holds one symmetric (P, P) matrix in `/matrix`, chunked (b, b). Only chunks that touch the lower
triangle are written; everything above the diagonal reads as NaN in any HDF5 tool. `/checksums` holds a CRC-32
a chunk, because HDF5's own checksum does not notice a chunk that was replaced by zeros. A file is written
under a temporary name and takes its final one when it is whole and on disk, so a shard that exists is
complete. The attribute `checksum` covers attributes, gradient and `/checksums`, and so all that is in the file.

The attribute `blocks` is "all", or "layer" for a matrix that is zero outside the diagonal blocks of the layers. Then
tiles that touch none of these blocks are not written either; `open_shard` gives zeros for them.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DamagedFile, NotAShard, PipelineError
from pipeline.layout import Layout
from pipeline.shards.hdf5 import damaged
from pipeline.shards.hdf5_store import HDF5
from pipeline.shards.matvec import multiplied
from pipeline.shards.row_bands import files_of
from pipeline.shards.tile_grid import ALL, Tile, TileGrid, mirrored
from pipeline.shards.tile_reader import TileFiles
from pipeline.shards.tile_store import Array, StoredFile, TileForm, TileStore
from pipeline.shards.writer import FORMAT_VERSION, checksum_of
from pipeline.system import is_of_shards

OTHER = "give another file, or move it away where shards are looked for"
# What the shards of one step, and their mean, say alike of themselves.
SHARED = ("matrix", "blocks", "strategy", "reduction", "dtype", "config_hash", "weights_hash", "step")


@dataclass(frozen=True, repr=False)
class Shard:
    """One matrix on disk. Holds no open file, so it can be handed to other processes.

    path: the file. attrs: its root attributes. parameters: order of rows and columns. tile: b. dtype: of the matrix.
    store: the storage format.
    """

    path: Path
    attrs: dict[str, Any]
    parameters: Layout
    tile: int
    dtype: np.dtype[Any]
    store: TileStore = HDF5

    def __repr__(self) -> str:
        of = ", ".join(f"{key[:5]} {self.attrs[key]}" for key in ("step", "batch_index") if key in self.attrs)
        kind = self.attrs.get("matrix", "matrix")
        return f"Shard({self.path.name}: {kind}, P = {self.num_rows:,}, {self.dtype}, {of})"

    @property
    def num_rows(self) -> int:
        """P."""
        return self.parameters.num_parameters

    @cached_property
    def grid(self) -> TileGrid:
        """Where its tiles lie."""
        return TileGrid.of(self.parameters, self.tile, self.attrs["blocks"])

    @cached_property
    def gradient(self) -> Array:
        """(P,), the gradient of the loss on this shard's batch."""
        return self.array("gradient")

    def array(self, name: str) -> Array:
        """An array that the file has beside the tiles."""
        with self.store.open(self.path) as file:
            return file.array(name)

    def tiles(
        self, indices: Iterable[Tile] | None = None, into: Array | None = None
    ) -> Iterator[tuple[Tile, Array]]:
        """The tiles (i, j), j <= i, of the lower triangle, each cut to the matrix; all of them if none are named.

        In a tile on the diagonal the entries above the diagonal are NaN.
        into: (b, b) of the matrix's dtype, memory for each tile in turn: a tile is good until the next one is taken.

        Raises:
            PipelineError: a tile is not what was written.
        """
        tiles = self.grid.all_tiles() if indices is None else list(indices)
        stored = [tile for tile in tiles if not self.grid.is_outside(tile)]
        files, checksums = self._tile_files()
        with files:
            found = files.read(stored, into)
            for tile in tiles:
                height, width = (span.stop - span.start for span in map(self.grid.span, tile))
                if self.grid.is_outside(tile):
                    zeros = np.zeros((self.tile, self.tile), self.dtype) if into is None else into
                    zeros[...] = 0
                    yield tile, zeros[:height, :width]
                    continue
                _, values, checksum = next(found)
                if values is None or checksum != checksums[tile]:
                    raise damaged(files.path(tile), f"tile {tile} does not match its checksum")
                if into is not None and not np.may_share_memory(values, into):  # the store has not used it
                    into[...] = values
                    values = into
                yield tile, values[:height, :width]

    def announce(self, indices: Iterable[Tile]) -> None:
        """Tell the system that these tiles will be read soon, so that it reads them while something else is done."""
        files, _ = self._tile_files()
        with files:
            for tile in indices:
                files.announce(tile)

    def _tile_files(self) -> tuple[TileFiles, Array]:
        """What reads the tiles, and the checksums of all, (n, n)."""
        form = TileForm(self.num_rows, self.tile, self.dtype, self.attrs.get("compression"))
        paths, starts = zip(*files_of(self.path, self.attrs), strict=True)
        files = [self.store.reader(path, form) for path in paths]
        return TileFiles(files, starts), _checksums(self.store, self.path, self.store.stamp(self.path))

    def tile_indices(self) -> list[Tile]:
        """All (i, j), j <= i, row by row."""
        return self.grid.all_tiles()

    def dense(self) -> Array:
        """The symmetric matrix, (P, P)."""
        everything = slice(0, self.num_rows)
        return self.block(everything, everything)

    def rows(self, start: int, stop: int) -> Array:
        """The rows start to stop - 1 of the symmetric matrix, (stop - start, P)."""
        return self.block(slice(start, stop), slice(0, self.num_rows))

    def block(self, rows: slice | str, cols: slice | str) -> Array:
        """The entries rows x cols of the matrix, each a slice or the name of a parameter.

        Only the tiles that they lie in are read.

        Raises:
            PipelineError: there is no parameter of that name, or the matrix has no such rows.
        """
        rows, cols = self._span(rows), self._span(cols)
        b = self.tile
        out = np.empty((rows.stop - rows.start, cols.stop - cols.start), self.dtype)
        wanted = {
            (max(i, j), min(i, j))
            for i in range(rows.start // b, -(-rows.stop // b))
            for j in range(cols.start // b, -(-cols.stop // b))
        }
        for (i, j), tile in self.tiles(sorted(wanted)):
            whole = mirrored(tile) if i == j else tile
            _copy(whole, (i * b, j * b), out, rows, cols)
            if i != j:
                _copy(whole.T, (j * b, i * b), out, rows, cols)
        return out

    def matvec(self, vectors: Array, rows: slice | None = None) -> Array:
        """The matrix times (P, m) vectors, in one pass over the file, each tile used for both triangles.

        rows: multiply the principal submatrix of these rows and columns alone; vectors are as long as it is.
        Vectors of the matrix's own dtype are multiplied in it, others in float64; sums over tiles are float64.
        """
        return multiplied(self, vectors, rows or slice(0, self.num_rows))

    def as_dask(self, tiles_per_chunk: int = 4) -> Any:
        """The symmetric matrix as a `dask.array`, which reads chunks of so many tiles each way when they are needed."""
        from pipeline.shards.dask_array import lazy_matrix  # dask only for those who ask for it

        return lazy_matrix(self, tiles_per_chunk)

    def _span(self, rows: slice | str) -> slice:
        if isinstance(rows, str):
            known = self.parameters.slices()
            if rows not in known:
                raise PipelineError(f"{self.path} has no parameter {rows!r}: it has {', '.join(known)}.")
            return known[rows]
        start, stop, step = rows.indices(self.num_rows)
        beyond = rows.stop is not None and rows.stop > self.num_rows
        if step != 1 or beyond or start > stop:
            raise PipelineError(
                f"{self.path} has no rows {rows}: give a slice within 0 to {self.num_rows}, of step 1."
            )
        return slice(start, stop)


def open_shard(path: str | Path, store: TileStore = HDF5) -> Shard:
    """Open a shard: `.dense()`, `.matvec(V)`, `.tiles()`, `.gradient`, `.attrs`, `.parameters`.

    Raises:
        PipelineError: there is no such file, it is damaged (`DamagedFile`), it is a file of another kind or of another
            program (`NotAShard`), or a newer version wrote it.
    """
    path = Path(path)
    ours = is_of_shards(path)  # where shards lie: then it was one, whatever it is now
    try:
        with store.open(path) as file:
            _check_kind(path, file, ours)
            ours = True
            return _opened(path, file, store)
    except DamagedFile as damage:
        if ours:
            raise
        raise NotAShard(f"{path} is not a shard, or not all of one ({damage.why}): {OTHER}.") from damage


def _check_kind(path: Path, file: StoredFile, ours: bool) -> None:
    """Refuse HDF5 files that hold something else; of a file that need not be ours more is asked for."""
    is_versioned = isinstance(file.attrs.get("format_version"), int)
    if not is_versioned or ("bands" not in file.attrs and file.form is None):
        if "spectrum" in file.attrs:
            raise NotAShard(
                f"{path} is not a shard but a spectra file: pipeline.open_run(FOLDER).spectra has it."
            )
        raise NotAShard(f"{path} is not a shard, as it has no /matrix and format_version: {OTHER}.")
    if not ours and not {"complete", "checksum"} <= set(file.attrs):
        raise NotAShard(
            f"{path} is not a shard, as it does not say that it is complete and has no checksum: {OTHER}."
        )


def _opened(path: Path, file: StoredFile, store: TileStore) -> Shard:
    attrs = file.attrs
    version = attrs["format_version"]
    if version > FORMAT_VERSION:
        raise PipelineError(
            f"{path} has format version {version}, this program reads up to {FORMAT_VERSION}: use a newer program."
        )
    if not attrs.get("complete", False):
        raise damaged(path, "it was never completed")
    arrays = {name: file.array(name) for name in file.names if name not in ("matrix", "parameters")}
    if attrs.get("checksum") != checksum_of(attrs, arrays):
        raise damaged(path, "its attributes or gradient do not match their checksum")
    names, shapes = (arrays[f"parameters/{key}"] for key in ("names", "shapes"))
    layout = Layout(tuple(names), tuple(tuple(json.loads(shape)) for shape in shapes))
    attrs.setdefault("blocks", ALL)
    if "bands" in attrs:
        for band, _ in files_of(path, attrs):
            if not band.exists():
                raise damaged(path, f"its band {band.parent.name}/{band.name} is missing")
        # what links to them is no part of this program, and HDF5 has no checksum for it
        return Shard(path, attrs, layout, attrs["tile"], np.dtype(attrs["dtype"]), store)
    form = file.form
    assert form is not None
    return Shard(path, attrs, layout, form.size, form.dtype, store)


@lru_cache(maxsize=32)
def _checksums(store: TileStore, path: Path, stamp: Hashable) -> Array:
    """Of the tiles, (n, n)."""
    with store.open(path) as file:
        return file.array("checksums")


def _copy(tile: Array, corner: tuple[int, int], out: Array, rows: slice, cols: slice) -> None:
    """Copy what a tile at `corner` and `out`, the entries rows x cols, have in common."""
    (top, left), (height, width) = corner, tile.shape
    r = slice(max(top, rows.start), min(top + height, rows.stop))
    c = slice(max(left, cols.start), min(left + width, cols.stop))
    if r.start < r.stop and c.start < c.stop:
        part = tile[r.start - top : r.stop - top, c.start - left : c.stop - left]
        out[r.start - rows.start : r.stop - rows.start, c.start - cols.start : c.stop - cols.start] = part
