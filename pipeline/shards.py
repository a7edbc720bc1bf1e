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
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.hdf5 import Array, File, attributes, damaged, reading, strings, writing
from pipeline.layout import Layout

FORMAT_VERSION = 1
TILE = 512
ALL, LAYER = "all", "layer"
Tile = tuple[int, int]


class ShardWriter:
    """Collects rectangles of a symmetric matrix and writes each tile as soon as its lower part is there.

    Memory: the tiles that are begun and not full; strategies that go row by row keep one row of tiles, b·P
        numbers. Use it through `write_shard`.
    """

    def __init__(
        self, file: File, layout: Layout, dtype: str, tile: int, directions: Array, blocks: str = ALL
    ) -> None:
        self._layers = _layer_of_each_row(layout) if blocks == LAYER else None
        self.num_rows = layout.num_parameters
        self.tile = min(tile, self.num_rows)
        shape, chunks = (self.num_rows, self.num_rows), (self.tile, self.tile)
        self._matrix = file.create_dataset("matrix", shape, dtype, chunks=chunks, fillvalue=np.nan)
        self._matrix.attrs["triangle"] = "lower"
        self.num_tile_rows = -(-self.num_rows // self.tile)
        self._checksums = np.zeros((self.num_tile_rows, self.num_tile_rows), np.uint32)
        self._begun: dict[Tile, tuple[Array, int]] = {}
        self._num_written = 0
        self._directions = directions.astype(dtype)
        self.products = np.zeros(
            directions.shape
        )  # H v for the directions v, (P, m), from the tiles written so far

    def add(self, rows: slice, cols: slice, values: Array) -> None:
        """Take the entries rows x cols; those above the diagonal are ignored.

        Raises:
            PipelineError: a tile that is full holds a NaN or an infinity.
        """
        b = self.tile
        for i in range(rows.start // b, -(-rows.stop // b)):
            for j in range(cols.start // b, min(-(-cols.stop // b), i + 1)):
                self._fill((i, j), rows, cols, values)

    def put(self, tile: Tile, values: Array) -> None:
        """Take the whole tile (i, j), j <= i, as (b, b) numbers; the last row and column of tiles are cut at P."""
        i, j = tile
        b, n = self.tile, self.num_rows
        self._fill(tile, slice(i * b, min(i * b + b, n)), slice(j * b, min(j * b + b, n)), values)

    def _fill(self, tile: Tile, rows: slice, cols: slice, values: Array) -> None:
        i, j = tile
        b = self.tile
        top, bottom = max(rows.start, i * b), min(rows.stop, i * b + b, self.num_rows)
        left, right = max(cols.start, j * b), min(cols.stop, j * b + b, self.num_rows)
        part = values[top - rows.start : bottom - rows.start, left - cols.start : right - cols.start]
        buffer, missing = self._begun.pop(tile) if tile in self._begun else self._begin(tile)
        inside = buffer[top - i * b : bottom - i * b, left - j * b : right - j * b]
        if i == j or self._layers is not None:
            wanted = self._wanted(slice(top, bottom), slice(left, right))
            inside[wanted] = part[wanted]
            missing -= int(wanted.sum())
            if not wanted.any() and missing == 0:  # a tile outside the layers' blocks
                return
        else:
            inside[...] = part
            missing -= part.size
        if missing > 0:
            self._begun[tile] = buffer, missing
        else:
            self._write(tile, buffer)

    def _begin(self, tile: Tile) -> tuple[Array, int]:
        """An empty tile, and how many entries it is to be given."""
        buffer = np.full((self.tile, self.tile), np.nan, self._matrix.dtype)
        if self._layers is None:
            return buffer, self._size(tile)
        rows, cols = (slice(k * self.tile, min((k + 1) * self.tile, self.num_rows)) for k in tile)
        wanted = self._wanted(rows, cols)
        lower = np.arange(rows.start, rows.stop)[:, None] >= np.arange(cols.start, cols.stop)
        buffer[: rows.stop - rows.start, : cols.stop - cols.start][lower & ~wanted] = 0
        return buffer, int(wanted.sum())

    def _wanted(self, rows: slice, cols: slice) -> Array:
        """Which of the entries rows x cols are given: those of the lower triangle, and of the layers' blocks."""
        lower = np.arange(rows.start, rows.stop)[:, None] >= np.arange(cols.start, cols.stop)
        return lower if self._layers is None else lower & (self._layers[rows, None] == self._layers[cols])

    def _size(self, tile: Tile) -> int:
        height, width = (min(self.tile, self.num_rows - k * self.tile) for k in tile)
        return height * (height + 1) // 2 if tile[0] == tile[1] else height * width

    def _write(self, tile: Tile, buffer: Array) -> None:
        if np.isfinite(buffer).sum() != self._size(tile):
            i, j = (k * self.tile for k in tile)
            raise PipelineError(
                f"the matrix has NaN or infinite entries (near row {i}, column {j}): "
                "look at the loss and the weights of this checkpoint, or use dtype=float64."
            )
        content = buffer.tobytes()
        self._matrix.id.write_direct_chunk((tile[0] * self.tile, tile[1] * self.tile), content)
        self._checksums[tile] = zlib.crc32(content)
        self._num_written += 1
        self._multiply(tile, buffer)

    def _multiply(self, tile: Tile, buffer: Array) -> None:
        rows, cols = (slice(k * self.tile, min((k + 1) * self.tile, self.num_rows)) for k in tile)
        values = buffer[: rows.stop - rows.start, : cols.stop - cols.start]
        self.products[rows] += (mirrored(values) if rows == cols else values) @ self._directions[cols]
        if rows != cols:
            self.products[cols] += values.T @ self._directions[rows]

    def close(self) -> Array:
        """The checksums; every tile of the triangle must have been filled."""
        tiles = ((i, j) for i in range(self.num_tile_rows) for j in range(i + 1))
        expected = sum(not _is_outside(tile, self.tile, self._layers) for tile in tiles)
        if self._num_written != expected:
            raise ValueError(
                f"{expected - self._num_written} of {expected} tiles of the triangle were never filled"
            )
        return self._checksums


@contextmanager
def write_shard(
    path: Path,
    layout: Layout,
    dtype: str,
    attrs: dict[str, Any],
    gradient: Array,
    tile: int = TILE,
    directions: Array | None = None,
) -> Iterator[ShardWriter]:
    """Write the shard `path` through the writer that the body gets; nothing is at `path` unless all of it went well.

    attrs: taken when the body ends, so that it may add to them. directions: (P, m), multiplied by the matrix as it is
    written: `writer.products`.

    Raises:
        PipelineError: the file cannot be written (disk full, folder read-only, an I/O error).
    """
    if directions is None:
        directions = np.zeros((layout.num_parameters, 0))
    blocks = attrs.get("blocks", ALL)
    with writing(path, file_size(layout, np.dtype(dtype).itemsize, blocks, tile)) as file:
        writer = ShardWriter(file, layout, dtype, tile, directions, blocks)
        yield writer
        checksums = writer.close()
        shapes = [json.dumps(shape) for shape in layout.shapes]
        file["checksums"] = checksums
        file["gradient"] = gradient
        file["parameters/names"] = strings(layout.names)
        file["parameters/shapes"] = strings(shapes)
        file["parameters/offsets"] = np.array(layout.offsets)
        file.attrs.update({"format_version": FORMAT_VERSION, **attrs, "dtype": dtype, "complete": True})
        file.attrs["checksum"] = _checksum(file)


def _checksum(file: File) -> int:
    """CRC-32 of everything but the tiles, which have checksums of their own."""
    told = {name: value for name, value in attributes(file).items() if name != "checksum"}
    texts = [list(file[f"parameters/{key}"].asstr()[:]) for key in ("names", "shapes")]
    crc = zlib.crc32(json.dumps([told, texts], sort_keys=True).encode())
    for name in ("checksums", "gradient", "parameters/offsets"):
        crc = zlib.crc32(file[name][:].tobytes(), crc)
    return crc


@dataclass(frozen=True)
class Shard:
    """One matrix on disk. Holds no open file, so it can be handed to other processes.

    path: the file. attrs: its root attributes. parameters: order of rows and columns. tile: b. dtype: of the matrix.
    """

    path: Path
    attrs: dict[str, Any]
    parameters: Layout
    tile: int
    dtype: np.dtype[Any]

    @property
    def num_rows(self) -> int:
        """P."""
        return self.parameters.num_parameters

    @cached_property
    def _layers(self) -> Array | None:
        return _layer_of_each_row(self.parameters) if self.attrs["blocks"] == LAYER else None

    @cached_property
    def gradient(self) -> Array:
        """(P,), the gradient of the loss on this shard's batch."""
        with reading(self.path) as file:
            return np.asarray(file["gradient"][:])

    def tiles(self, wanted: Iterable[Tile] | None = None) -> Iterator[tuple[Tile, Array]]:
        """The tiles (i, j), j <= i, of the lower triangle, each cut to the matrix; all of them if none are named.

        In a tile on the diagonal the entries above the diagonal are NaN.

        Raises:
            PipelineError: a tile is not what was written.
        """
        b, n = self.tile, self.num_rows
        with reading(self.path) as file:
            matrix, checksums = file["matrix"], file["checksums"][:]
            for i, j in self.tile_indices() if wanted is None else wanted:
                if _is_outside((i, j), b, self._layers):
                    yield (i, j), np.zeros((min(b, n - i * b), b), self.dtype)
                    continue
                try:
                    content = matrix.id.read_direct_chunk((i * b, j * b))[1]
                except (OSError, RuntimeError, ValueError):
                    content = b""
                if zlib.crc32(content) != checksums[i, j] or len(content) != b * b * self.dtype.itemsize:
                    raise damaged(self.path, f"tile ({i}, {j}) does not match its checksum")
                whole = np.frombuffer(content, self.dtype).reshape(b, b)
                yield (i, j), whole[: min(b, n - i * b), : min(b, n - j * b)]

    def tile_indices(self) -> list[Tile]:
        """All (i, j), j <= i, row by row."""
        return [(i, j) for i in range(-(-self.num_rows // self.tile)) for j in range(i + 1)]

    def dense(self) -> Array:
        """The symmetric matrix, (P, P)."""
        everything = slice(0, self.num_rows)
        return self.block(everything, everything)

    def block(self, rows: slice, cols: slice) -> Array:
        """The entries rows x cols of the matrix; only the tiles that they lie in are read."""
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
        """
        b, span = self.tile, rows or slice(0, self.num_rows)
        tiles = range(span.start // b, -(-span.stop // b))
        shape = (self.num_rows, *vectors.shape[1:])
        full = np.zeros(shape, vectors.dtype)
        full[span] = vectors
        out = np.zeros(shape, np.result_type(self.dtype, vectors.dtype))
        for (i, j), tile in self.tiles((i, j) for i in tiles for j in tiles if j <= i):
            r, c = slice(i * b, i * b + tile.shape[0]), slice(j * b, j * b + tile.shape[1])
            out[r] += (mirrored(tile) if i == j else tile) @ full[c]
            if i != j:
                out[c] += tile.T @ full[r]
        return out[span]


def open_shard(path: str | Path) -> Shard:
    """Open a shard: `.dense()`, `.matvec(V)`, `.tiles()`, `.gradient`, `.attrs`, `.parameters`.

    Raises:
        PipelineError: there is no such file, it is no shard, it is cut short, or a newer version wrote it.
    """
    path = Path(path)
    with reading(path) as file:
        version = file.attrs.get("format_version")
        if version is None or "matrix" not in file:
            raise PipelineError(f"{path} is not a shard: it has no /matrix and format_version.")
        if version > FORMAT_VERSION:
            raise PipelineError(
                f"{path} has format version {version}, this program reads up to {FORMAT_VERSION}: use a newer program."
            )
        if not file.attrs.get("complete", False):
            raise damaged(path, "it was never completed")
        attrs = attributes(file)
        if attrs.get("checksum") != _checksum(file):
            raise damaged(path, "its attributes or gradient do not match their checksum")
        names, shapes = (file[f"parameters/{key}"].asstr()[:] for key in ("names", "shapes"))
        layout = Layout(tuple(names), tuple(tuple(json.loads(shape)) for shape in shapes))
        attrs.setdefault("blocks", ALL)
        return Shard(path, attrs, layout, file["matrix"].chunks[0], file["matrix"].dtype)


def _copy(tile: Array, corner: tuple[int, int], out: Array, rows: slice, cols: slice) -> None:
    """Copy what a tile at `corner` and `out`, the entries rows x cols, have in common."""
    (top, left), (height, width) = corner, tile.shape
    r = slice(max(top, rows.start), min(top + height, rows.stop))
    c = slice(max(left, cols.start), min(left + width, cols.stop))
    if r.start < r.stop and c.start < c.stop:
        part = tile[r.start - top : r.stop - top, c.start - left : c.stop - left]
        out[r.start - rows.start : r.stop - rows.start, c.start - cols.start : c.stop - cols.start] = part


def file_size(layout: Layout, itemsize: int, blocks: str = ALL, tile: int = TILE) -> int:
    """Bytes of a shard, at most: the tiles of its triangle, the gradient, and 1 MB for all the rest."""
    b = min(tile, layout.num_parameters)
    num_tile_rows = -(-layout.num_parameters // b)
    num_tiles = num_tile_rows * (num_tile_rows + 1) // 2
    if blocks == LAYER:
        layers = _layer_of_each_row(layout)
        tiles = ((i, j) for i in range(num_tile_rows) for j in range(i + 1))
        num_tiles = sum(not _is_outside(tile, b, layers) for tile in tiles)
    return (num_tiles * b * b + layout.num_parameters) * itemsize + 2**20


def _layer_of_each_row(layout: Layout) -> Array:
    """(P,), increasing."""
    spans = layout.layers().values()
    return np.repeat(np.arange(len(spans)), [span.stop - span.start for span in spans])


def _is_outside(tile: Tile, size: int, layers: Array | None) -> bool:
    """Whether a tile of the lower triangle touches no diagonal block: all its columns are of earlier layers."""
    if layers is None:
        return False
    i, j = tile
    return bool(layers[min((j + 1) * size, len(layers)) - 1] < layers[i * size])


def mirrored(tile: Array) -> Array:
    """A tile on the diagonal, with its lower part mirrored to the upper."""
    return np.where(np.tri(len(tile), dtype=bool), tile, tile.T)
