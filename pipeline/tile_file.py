"""Tiles read straight from where they lie in a file: HDF5 would let in one thread at a time."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.folder import unreadable
from pipeline.hdf5 import Array
from pipeline.tiles import Tile

AHEAD_BYTES = 32 * 2**20  # of what comes next, that the system is told to read meanwhile


class TileFile:
    """The (b, b) tiles of a file whose chunks begin at `places`, (n, n), -1 where there is none."""

    def __init__(self, path: Path, places: Array, dtype: np.dtype[Any], size: int) -> None:
        self._path, self._places, self._dtype, self._size = path, places, dtype, size
        self._num_bytes = size * size * dtype.itemsize

    def __enter__(self) -> TileFile:
        try:
            self._handle = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(self._path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def read(self, wanted: Sequence[Tile]) -> Iterator[tuple[Tile, Array | None, int]]:
        """Each tile with its values and their CRC-32; without values, where there are not enough bytes.

        Raises:
            PipelineError: the system cannot read the file.
        """
        ahead = max(1, AHEAD_BYTES // self._num_bytes)
        for tile in wanted[:ahead]:
            self._announce(tile)
        for number, tile in enumerate(wanted):
            if number + ahead < len(wanted):
                self._announce(wanted[number + ahead])
            content = self._content(tile)
            values = None
            if len(content) == self._num_bytes:
                values = np.frombuffer(content, self._dtype).reshape(self._size, self._size)
            yield tile, values, zlib.crc32(content)

    def _announce(self, tile: Tile) -> None:
        if self._places[tile] >= 0:
            os.posix_fadvise(self._handle, int(self._places[tile]), self._num_bytes, os.POSIX_FADV_WILLNEED)

    def _content(self, tile: Tile) -> bytes:
        if self._places[tile] < 0:
            return b""
        try:
            return os.pread(self._handle, self._num_bytes, int(self._places[tile]))
        except OSError as error:
            raise unreadable(self._path, error) from error
