"""Tiles read straight from where they lie in a file: HDF5 would let in one thread at a time."""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shards.hdf5 import Packer
from pipeline.shards.tile_store import Array, ReadTile, Tile, TileForm, TileReader
from pipeline.system import unreadable

MOST_BESIDE = 4096  # bytes that packing may add to a tile
AHEAD_BYTES = 32 * 2**20  # of what comes next, that the system is told to read meanwhile


class TileFile:
    """The tiles of a file whose chunks lie at `places`, (n, n, 2), offset and length each."""

    def __init__(self, path: Path, places: Array, form: TileForm) -> None:
        self.path, self._places, self._form, self._num_bytes = path, places, form, form.tile_bytes
        self._packer = Packer(form.packed, form.dtype, form.size) if form.packed else None

    def __enter__(self) -> TileFile:
        try:
            self._handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            self._close_packer()
            raise unreadable(self.path, error) from error
        return self

    def __exit__(self, *error: Any) -> None:
        os.close(self._handle)
        self._close_packer()

    def _close_packer(self) -> None:
        if self._packer is not None:
            self._packer.close()

    def read(self, indices: Sequence[Tile], into: Array | None = None) -> Iterator[ReadTile]:
        """Each tile with its values and their CRC-32; without values, where there are not enough bytes.

        into: (b, b), memory for every tile, which spares the system to find new pages for each: the values are good
        until the next one is asked for.

        Raises:
            PipelineError: the system cannot read the file.
        """
        ahead = max(1, AHEAD_BYTES // self._num_bytes)
        for tile in indices[:ahead]:
            self.announce(tile)
        for number, tile in enumerate(indices):
            if number + ahead < len(indices):
                self.announce(indices[number + ahead])
            content = self._content(tile, into if self._packer is None else None)
            values = self._values(content)
            if into is not None and values is not None and self._packer is not None:
                into[...] = values
                values = into
            yield tile, values, zlib.crc32(content)

    def _values(self, content: bytes | memoryview) -> Array | None:
        if self._packer is None or not content:
            fits = len(content) == self._num_bytes
            shape = (self._form.size, self._form.size)
            return np.frombuffer(content, self._form.dtype).reshape(shape) if fits else None
        try:
            return self._packer.unpack(bytes(content))
        except (OSError, RuntimeError):  # the filter cannot make sense of it
            return None

    def announce(self, tile: Tile) -> None:
        """Tell the system that a tile will be read soon, so that it does so meanwhile."""
        place, num_bytes = map(int, self._places[tile])
        if place >= 0:
            os.posix_fadvise(self._handle, place, num_bytes, os.POSIX_FADV_WILLNEED)

    def _content(self, tile: Tile, into: Array | None) -> bytes | memoryview:
        place, num_bytes = map(int, self._places[tile])
        if place < 0 or num_bytes > 2 * self._num_bytes + MOST_BESIDE:
            return b""
        try:
            if into is None:
                return os.pread(self._handle, num_bytes, place)
            room = into.data.cast("B")
            return room[: os.preadv(self._handle, [room[:num_bytes]], place)]
        except OSError as error:
            raise unreadable(self.path, error) from error


class TileFiles:
    """The tiles of a matrix whose rows of tiles lie in several files; read like a `TileReader`.

    starts: the first row of tiles in each.
    """

    def __init__(self, files: Sequence[TileReader], starts: Sequence[int]) -> None:
        self._files, self._starts = files, starts
        self._open = ExitStack()

    def __enter__(self) -> TileFiles:
        with ExitStack() as stack:
            for file in self._files:
                stack.enter_context(file)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def _number(self, tile: Tile) -> int:
        return bisect_right(self._starts, tile[0]) - 1

    def path(self, tile: Tile) -> Path:
        """The file in which a tile lies."""
        return self._files[self._number(tile)].path

    def announce(self, tile: Tile) -> None:
        self._files[self._number(tile)].announce(tile)

    def read(self, indices: Sequence[Tile], into: Array | None = None) -> Iterator[ReadTile]:
        owners = [self._number(tile) for tile in indices]
        found = [
            file.read([tile for tile, owner in zip(indices, owners, strict=True) if owner == number], into)
            for number, file in enumerate(self._files)
        ]
        for owner in owners:
            yield next(found[owner])
