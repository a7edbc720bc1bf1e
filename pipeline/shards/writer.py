"""Writing a shard: rectangles of the matrix come in any order, tiles go to the disk as they are full."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.shards.hdf5 import stored_attributes
from pipeline.shards.hdf5_store import HDF5
from pipeline.shards.tile_grid import ALL, TILE, Tile, TileGrid, file_size
from pipeline.shards.tile_journal import Entry, TileJournal
from pipeline.shards.tile_store import Array, TileForm, TileStore, UnfinishedFile
from pipeline.shards.tile_writer import TileStream
from pipeline.system import partial_of

FORMAT_VERSION = 2  # 1: texts of any length, and structures of HDF5 without checksums


class ShardWriter:
    """Collects rectangles of a symmetric matrix, and hands on each tile as soon as its lower part is there.

    Memory: the tiles that are begun and not full; strategies that go row by row keep one row of tiles, b·P
        numbers. Use it through `write_shard`.
    """

    def __init__(self, grid: TileGrid, stream: TileStream, missing: Array, num_there: int) -> None:
        self._grid, self._stream, self._missing = grid, stream, missing
        self._to_fill = missing.copy()
        self._begun: dict[Tile, tuple[Array, int]] = {}
        self.extra_arrays: dict[str, Array] = {}  # datasets that the file has beside those of every shard
        self.num_there, self.num_to_do = num_there, int(missing.sum())  # tiles, when it began

    def is_missing(self, rows: slice, cols: slice) -> bool:
        """Whether any entry rows x cols, or its mirror image, lay in a tile that was missing when writing began."""
        if cols.start >= rows.stop:
            rows, cols = cols, rows
        b = self._grid.size
        part = self._missing[rows.start // b : -(-rows.stop // b), cols.start // b : -(-cols.stop // b)]
        return bool(part.any())

    def add(self, rows: slice, cols: slice, values: Array) -> None:
        """Take the entries rows x cols; those above the diagonal, and those of tiles that are there, are ignored.

        Raises:
            PipelineError: a tile that is full holds a NaN or an infinity.
        """
        b = self._grid.size
        for i in range(rows.start // b, -(-rows.stop // b)):
            for j in range(cols.start // b, min(-(-cols.stop // b), i + 1)):
                if self._to_fill[i, j]:
                    self._fill((i, j), rows, cols, values)

    def put(self, tile: Tile, values: Array) -> None:
        """Take the whole tile (i, j), j <= i, as (b, b) numbers; the last row and column of tiles are cut at P.

        `values` belongs to the writer from now on: where nothing is to be left out, it is written as it is.
        """
        if not self._to_fill[tile]:
            return
        if tile[0] != tile[1] and self._grid.layers is None and self._stream.takes(values):
            self._to_fill[tile] = False
            self._stream.put(tile, values)
        else:
            rows, cols = map(self._grid.span, tile)
            self._fill(tile, rows, cols, values)

    @property
    def products(self) -> Array:
        """H v for the directions v, (P, m), from the tiles that are full so far."""
        self._stream.drain()
        return self._stream.products

    @property
    def rounding(self) -> dict[str, float]:
        """How far rounding to the stored dtype moved an entry at most, and that relative to the largest one."""
        self._stream.drain()
        moved, largest = self._stream.rounding, self._stream.largest
        return {"rounding_abs": moved, "rounding_rel": moved / largest if largest else 0.0}

    def close(self) -> Array:
        """The checksums; every tile must have been filled."""
        self._stream.drain()
        if left := int(self._to_fill.sum()):
            raise ValueError(f"{left} of {self.num_to_do} tiles of the triangle were never filled")
        return self._stream.checksums

    def _fill(self, tile: Tile, rows: slice, cols: slice, values: Array) -> None:
        i, j = (span.start for span in map(self._grid.span, tile))
        b, n = self._grid.size, self._grid.num_rows
        top, bottom = max(rows.start, i), min(rows.stop, i + b, n)
        left, right = max(cols.start, j), min(cols.stop, j + b, n)
        part = values[top - rows.start : bottom - rows.start, left - cols.start : right - cols.start]
        buffer, num_left = self._begun.pop(tile) if tile in self._begun else self._begin(tile)
        inside = buffer[top - i : bottom - i, left - j : right - j]
        if i == j or self._grid.layers is not None:
            given = self._grid.entry_mask(slice(top, bottom), slice(left, right))
            inside[given] = part[given]
            num_left -= int(given.sum())
        else:
            inside[...] = part
            num_left -= part.size
        if num_left > 0:
            self._begun[tile] = buffer, num_left
        else:
            self._to_fill[tile] = False
            self._stream.put(tile, buffer)

    def _begin(self, tile: Tile) -> tuple[Array, int]:
        """An empty tile, and how many entries it is to be given."""
        buffer = self._stream.empty()
        if self._grid.layers is None:
            return buffer, self._grid.num_entries(tile)
        rows, cols = map(self._grid.span, tile)
        given = self._grid.entry_mask(rows, cols)
        lower = np.arange(rows.start, rows.stop)[:, None] >= np.arange(cols.start, cols.stop)
        buffer[: rows.stop - rows.start, : cols.stop - cols.start][lower & ~given] = 0
        return buffer, int(given.sum())


@contextmanager
def write_shard(
    path: Path,
    layout: Layout,
    dtype: str,
    attrs: dict[str, Any],
    gradient: Array,
    tile: int = TILE,
    directions: Array | None = None,
    identity: Mapping[str, Any] | None = None,
    part: Collection[Tile] | None = None,
    computed: str | None = None,
    packed: str | None = None,
    store: TileStore = HDF5,
) -> Iterator[ShardWriter]:
    """Write the shard `path` through the writer that the body gets; nothing is at `path` unless all of it went well.

    attrs: taken when the body ends, so that it may add to them. directions: (P, m), multiplied by the matrix as it is
    written: `writer.products`. part: write these tiles alone. computed: the dtype of what comes, if it is not `dtype`.
    packed: what tiles are packed with, None or "blosc2". store: the storage format.
    identity: all that the entries depend on. With it, tiles are recorded as they reach the disk, in a journal beside
    the unfinished file. When the body is cut short, by a kill or by anything but a PipelineError, the next call with
    the same identity takes those that are as they were recorded, and `writer.is_missing` says what is still to do.

    Raises:
        PipelineError: the file cannot be written (disk full, folder read-only, an I/O error).
    """
    if directions is None:
        directions = np.zeros((layout.num_parameters, 0))
    blocks = attrs.get("blocks", ALL)
    grid = TileGrid.of(layout, tile, blocks)
    journal, recorded = None, list[Entry]()
    if identity is not None:
        form = [
            layout.names,
            layout.shapes,
            dtype,
            grid.size,
            blocks,
            part and sorted(part),
            packed,
            FORMAT_VERSION,
        ]
        journal = TileJournal.beside(path, {"of": dict(identity), "form": form})
        recorded = journal.read()
    num_bytes = file_size(layout, np.dtype(dtype).itemsize, blocks, tile, part)
    tiles = TileForm(grid.num_rows, grid.size, np.dtype(dtype), packed)
    try:
        with store.create(
            path, tiles, num_bytes, bool(recorded), lambda error: _is_kept(error, journal)
        ) as output:
            with TileStream(output, tiles, grid, directions, journal, computed) as stream:
                missing, there = grid.tile_mask(part), stream.restore(recorded)
                for sound in there:
                    missing[sound] = False
                writer = ShardWriter(grid, stream, missing, len(there))
                yield writer
                checksums = writer.close()
            packing = {"compression": packed} if packed else {}
            all_attrs = {**attrs, **packing, "dtype": dtype}
            finish(output, layout, checksums, gradient, all_attrs, writer.extra_arrays)
    finally:
        if journal is not None and not partial_of(path).exists():
            journal.remove()


def _is_kept(error: BaseException, journal: TileJournal | None) -> bool:
    """Whether the unfinished file is worth keeping: not, where it is its numbers that were refused."""
    refused = isinstance(error, PipelineError) and not isinstance(error.__cause__, OSError)
    return journal is not None and journal.path.exists() and not refused


def finish(
    output: UnfinishedFile,
    layout: Layout,
    checksums: Array,
    gradient: Array,
    attrs: Mapping[str, Any],
    extra_arrays: Mapping[str, Array] | None = None,
) -> None:
    """Write all that a shard has beside its matrix, and that it is complete."""
    arrays = {
        "checksums": checksums,
        "gradient": np.asarray(gradient),
        "parameters/names": np.array(layout.names),
        "parameters/shapes": np.array([json.dumps(shape) for shape in layout.shapes]),
        "parameters/offsets": np.array(layout.offsets),
        **(extra_arrays or {}),
    }
    stored = stored_attributes({"format_version": FORMAT_VERSION, **attrs, "complete": True})
    output.finish({**stored, "checksum": checksum_of(stored, arrays)}, arrays)


def checksum_of(attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> int:
    """CRC-32 of everything but the tiles, which have checksums of their own."""
    others = {name: value for name, value in attrs.items() if name != "checksum"}
    texts = [arrays[f"parameters/{key}"].tolist() for key in ("names", "shapes")]
    crc = zlib.crc32(json.dumps([others, texts], sort_keys=True).encode())
    first = ("checksums", "gradient", "parameters/offsets")
    kept = sorted(name for name in arrays if name not in first and not name.startswith("parameters/"))
    for name in (*first, *kept):
        crc = zlib.crc32(arrays[name].tobytes(), crc)
    return crc
