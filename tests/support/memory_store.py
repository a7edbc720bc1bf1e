"""A storage format that keeps files in a dictionary: all that a new `TileStore` takes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.shards.tile_store import Array, ReadTile, Tile, TileForm


class MemoryFile:
    def __init__(self, path: Path, form: TileForm) -> None:
        self.path, self.form = path, form
        self.tiles: dict[Tile, bytes] = {}
        self.attrs: dict[str, Any] = {}
        self.arrays: dict[str, Array] = {}

    @property
    def names(self) -> list[str]:
        return ["matrix", *self.arrays]

    def array(self, name: str) -> Array:
        return self.arrays[name]

    def write(self, tile: Tile, values: Array) -> int:
        self.tiles[tile] = values.tobytes()
        return zlib.crc32(self.tiles[tile])

    def read(self, wanted: Sequence[Tile], into: Array | None = None) -> Iterator[ReadTile]:
        for tile in wanted:
            content = self.tiles.get(tile, b"")
            shape = (self.form.size, self.form.size)
            values = np.frombuffer(content, self.form.dtype).reshape(shape) if content else None
            yield tile, values, zlib.crc32(content)

    def flush(self) -> None: ...

    def sync(self) -> None: ...

    def link(self, bands: Sequence[tuple[str, slice]]) -> None: ...

    def announce(self, tile: Tile) -> None: ...

    def finish(self, attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self.attrs, self.arrays = dict(attrs), dict(arrays)

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *error: object) -> None: ...


class MemoryStore:
    def __init__(self) -> None:
        self.files: dict[Path, MemoryFile] = {}

    @contextmanager
    def create(self, path: Path, form: TileForm, *_: object) -> Iterator[MemoryFile]:
        file = MemoryFile(path, form)
        yield file
        self.files[path] = file

    @contextmanager
    def open(self, path: Path) -> Iterator[MemoryFile]:
        if path not in self.files:
            raise PipelineError(f"{path}: no such file.")
        yield self.files[path]

    def reader(self, path: Path, form: TileForm) -> MemoryFile:
        return self.files[path]

    def stamp(self, path: Path) -> int:
        return id(self.files[path])
