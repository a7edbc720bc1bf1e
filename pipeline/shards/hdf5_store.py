"""Shards in HDF5 files: the tiles are the chunks of `/matrix`. A `pipeline.shards.tile_store.TileStore`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import NotAShard, PipelineError
from pipeline.shards.hdf5 import (
    Output,
    Packer,
    array_of,
    attributes,
    filter_options,
    names_in,
    reading,
    replace_content,
    strings,
    writing,
)
from pipeline.shards.tile_reader import TileFile
from pipeline.shards.tile_store import Array, ReadTile, Tile, TileForm


@dataclass(frozen=True)
class HDF5Store:
    """See `pipeline.shards.tile_store.TileStore`."""

    @contextmanager
    def create(
        self,
        path: Path,
        form: TileForm,
        num_bytes: int,
        resume: bool = False,
        is_resumable: Callable[[BaseException], bool] | None = None,
    ) -> Iterator[_Unfinished]:
        with writing(path, num_bytes, resume, is_resumable) as output:
            unfinished = _Unfinished(output, form)
            try:
                yield unfinished
            finally:
                unfinished.close()

    @contextmanager
    def open(self, path: Path) -> Iterator[_Stored]:
        if path.is_dir():
            raise NotAShard(
                f"{path} is a folder, not a shard: pipeline.open_run(FOLDER) opens that of a run."
            )
        with reading(path) as file:
            yield _Stored(file)

    def reader(self, path: Path, form: TileForm) -> TileFile:
        return TileFile(path, _places(path, self.stamp(path), None if form.packed else form.tile_bytes), form)

    def stamp(self, path: Path) -> tuple[int, ...]:
        if not path.is_file():
            raise PipelineError(f"{path}: no such file.")
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


HDF5 = HDF5Store()


class _Stored:
    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.attrs, self.names = attributes(file), names_in(file)

    @property
    def form(self) -> TileForm | None:
        return _form_of(self._file)

    def array(self, name: str) -> Array:
        return array_of(self._file, name)


class _Unfinished:
    def __init__(self, output: Output, form: TileForm) -> None:
        self._output, self._form = output, form
        self._matrix: Any = None
        self._packer = Packer(form.packed, form.dtype, form.size) if form.packed else None

    def _opened(self) -> Any:
        if self._matrix is None:
            self._matrix = _matrix_in(self._output.file, self._form)
        return self._matrix

    def write(self, tile: Tile, values: Array) -> int:
        content, mask = (values, 0) if self._packer is None else self._packer.pack(values)
        corner = tile[0] * self._form.size, tile[1] * self._form.size
        self._output.write_chunk(self._opened(), corner, content, mask)
        return zlib.crc32(content.data if isinstance(content, np.ndarray) else content)

    def read(self, tiles: Sequence[Tile]) -> Iterator[ReadTile]:
        places = _places_of(self._opened(), None if self._packer else self._form.tile_bytes)
        with TileFile(Path(self._output.file.filename), places, self._form) as file:
            yield from file.read(tiles)

    def flush(self) -> None:
        self._output.flush()

    def sync(self) -> None:
        self._output.raw.sync()

    def link(self, bands: Sequence[tuple[str, slice]]) -> None:
        _join_rows(self._output.file, self._form, bands)

    def finish(self, attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        replace_content(self._output.file, attrs, arrays)

    def close(self) -> None:
        if self._packer is not None:
            self._packer.close()


@lru_cache(maxsize=32)
def _places(path: Path, stamp: tuple[int, ...], num_bytes: int | None) -> Array:
    """Where the tiles begin in the file, and how many bytes each has; known once in a process, as long as it stays."""
    with reading(path) as file:
        return _places_of(file["matrix"], num_bytes)


def _places_of(dataset: h5py.Dataset, num_bytes: int | None) -> Array:
    """Where in the file each chunk of a matrix begins, and how many bytes it has, (n, n, 2); -1 where there is none.

    num_bytes: of each chunk; None, where they are packed. Whoever knows it reads chunks without HDF5, which lets one
    thread in at a time.
    """
    rows, cols = (-(-n // size) for n, size in zip(dataset.shape, dataset.chunks, strict=True))
    places = np.full((rows, cols, 2), -1, np.int64)

    def note(chunk: Any) -> None:
        i, j = (start // size for start, size in zip(chunk.chunk_offset, dataset.chunks, strict=True))
        inside = i < rows and j < cols  # not where the file is damaged
        if inside and num_bytes in (None, chunk.size) and chunk.byte_offset is not None:
            places[i, j] = min(chunk.byte_offset, np.iinfo(np.int64).max), chunk.size

    dataset.id.chunk_iter(note)
    return places


def _join_rows(file: h5py.File, form: TileForm, parts: Sequence[tuple[str, slice]]) -> None:
    """A dataset `matrix`, the lower triangle of which lies in the same dataset of other files: these rows in each.

    parts: paths, relative to the folder of this file, and rows. What is above the triangle reads as NaN.
    """
    shape = (form.num_rows, form.num_rows)
    virtual = h5py.VirtualLayout(shape, form.dtype)
    for name, rows in parts:
        triangle = np.s_[rows, : rows.stop]
        virtual[triangle] = h5py.VirtualSource(name, "matrix", shape)[triangle]
    matrix = file.create_virtual_dataset("matrix", virtual, fillvalue=np.nan)
    matrix.attrs["triangle"] = "lower"


def _matrix_in(file: h5py.File, form: TileForm) -> h5py.Dataset:
    """The dataset of a matrix in tiles: a new one, or that of a file that is taken up again."""
    if "matrix" in file:
        return file["matrix"]
    shape, chunks = (form.num_rows, form.num_rows), (form.size, form.size)
    options = filter_options(form.packed)
    matrix = file.create_dataset("matrix", shape, form.dtype, chunks=chunks, fillvalue=np.nan, **options)
    matrix.attrs["triangle"] = strings("lower")
    return matrix


def _form_of(file: h5py.File) -> TileForm | None:
    """How the dataset `matrix` is cut into tiles; None, where there is none of two dimensions."""
    matrix = file.get("matrix")
    if getattr(matrix, "ndim", 0) != 2:
        return None
    return TileForm(matrix.shape[0], (matrix.chunks or matrix.shape)[0], matrix.dtype)
