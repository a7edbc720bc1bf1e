"""HDF5 files: written whole or not at all, errors in one line. The only module that imports h5py."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedFile, PipelineError
from pipeline.folder import partial_of, replacing, set_aside, unreadable
from pipeline.raw_file import RawFile, replay
from pipeline.seal import is_broken

Array = NDArray[Any]
File = h5py.File
NUMBERS = count()  # HDF5 tells files in memory apart by name
RECOMPUTE = "delete it and run again, which recomputes this file alone"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """Named numbers and arrays from one file."""

    attrs: dict[str, Any]
    arrays: dict[str, Array]


def write_results(path: Path, attrs: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write attributes and arrays (names may hold `/`; lists of strings are allowed), all or nothing."""
    encoded = {name: np.asarray(values) for name, values in arrays.items()}
    with writing(path, sum(array.nbytes for array in encoded.values()) + 2**20) as output:
        output.file.attrs.update(attrs)
        for name, array in encoded.items():
            output.file[name] = strings(array) if array.dtype.kind in "UO" else array


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote."""
    with reading(path) as file:
        arrays: dict[str, Array] = {}
        file.visititems(
            lambda name, item: arrays.update({name: _values(item)} if isinstance(item, h5py.Dataset) else {})
        )
        return Results(attributes(file), arrays)


def sound_results(path: Path) -> Results | None:
    """What `write_results` wrote; None where it is to be made: there is no file, or a damaged one, now set aside."""
    try:
        return read_results(path) if path.exists() else None
    except DamagedFile as damage:
        log.warning("%s", set_aside(damage, "it is made again"))
        return None


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Read whole arrays by name from anyone's HDF5 file.

    Raises:
        PipelineError: the file cannot be read, or has no array of that name.
    """
    with reading(path, "give another file", ours=False) as file:
        present: list[str] = []
        file.visititems(lambda name, item: present.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            if name not in present:
                raise PipelineError(f"{path} has no array {name!r}: it has {', '.join(present) or 'none'}.")
        return {name: _values(file[name]) for name in names}


@dataclass(frozen=True)
class Output:
    """An HDF5 file that is being written, and the file under it."""

    file: h5py.File
    raw: RawFile

    def flush(self) -> None:
        """Hand all that HDF5 holds to the system: a process that is killed after this leaves a file as it is now."""
        self.file.flush()
        self.raw.commit()
        self.raw.check()

    def write_chunk(
        self, dataset: h5py.Dataset, corner: tuple[int, ...], content: Array | bytes, mask: int = 0
    ) -> None:
        """Write the chunk that begins at `corner`; mask: the filters that were not applied to it.

        Raises:
            OSError: it cannot be written.
        """
        self.raw.straight = content.nbytes if isinstance(content, np.ndarray) else len(content)
        dataset.id.write_direct_chunk(corner, content, mask)
        self.raw.straight = 0
        self.raw.check()


@contextmanager
def writing(
    path: Path, num_bytes: int, go_on: bool = False, kept: Callable[[BaseException], bool] | None = None
) -> Iterator[Output]:
    """A new file, which takes its name when it is whole, sealed and on disk.

    Room for it is reserved first, so that a full disk is told before anything is computed. HDF5 writes through a
    `RawFile`, as it cannot close a file that it cannot write.
    go_on: with what an earlier process left under the temporary name, if it can be opened. kept: see `replacing`; with
    it, what a kill leaves is the file as last flushed.

    Raises:
        PipelineError: the file cannot be written.
    """
    redo = path.with_name(path.name + ".redo") if kept is not None else None
    try:
        with replacing(path, kept) as partial:
            go_on = go_on and redo is not None and _opens(partial, redo)
            if not go_on:
                partial.unlink(missing_ok=True)
            with closing(RawFile(partial, num_bytes, redo)) as raw:
                with h5py.File(
                    partial,
                    "r+" if go_on else "w",
                    libver=("earliest", "v110"),
                    driver="fileobj",
                    fileobj=raw,
                ) as file:
                    yield Output(file, raw)
                    tiles = _tiles_in(file)
                raw.finish(tiles)
    finally:
        if redo is not None and not partial_of(path).exists():
            with suppress(OSError):  # what went wrong first is what is told
                redo.unlink(missing_ok=True)


def _tiles_in(file: h5py.File) -> Array:
    """Offset and length of each tile of a matrix, (k, 2)."""
    matrix = file.get("matrix")
    places = places_of(matrix, None) if matrix is not None and matrix.chunks else np.zeros((0, 2), np.int64)
    return places[places[..., 0] >= 0]


def _opens(path: Path, redo: Path) -> bool:
    """Whether what an earlier process left can be gone on with: its chunks are found."""
    try:
        replay(path, redo)
        with h5py.File(path, "r") as file:
            file["matrix"].id.chunk_iter(lambda _: None)
    except (KeyError, OSError, RuntimeError):
        return False
    return True


@contextmanager
def reading(path: Path, remedy: str = RECOMPUTE, ours: bool = True) -> Iterator[h5py.File]:
    """An HDF5 file; one of ours with its seal whole.

    Raises:
        PipelineError: it is not there, it is damaged (`DamagedFile`), or the disk has a fault.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file.")
    try:
        if ours and is_broken(path):
            raise damaged(path, "it is not what was written", remedy)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _unread(path, error, "HDF5 cannot open it", remedy) from error
    with file:
        try:
            yield file
        except (KeyError, OSError, RuntimeError) as error:
            raise _unread(path, error, " ".join(str(error).strip("'\"").split()), remedy) from error


def _unread(path: Path, error: Exception, why: str, remedy: str) -> PipelineError:
    """A fault of the disk says nothing of the file on it, which must not be deleted then."""
    fault = _fault_behind(error)
    return damaged(path, why, remedy) if fault is None else unreadable(path, fault)


def _fault_behind(error: Exception) -> OSError | None:
    """What the system said; None, where it is the content of a file that HDF5 does not understand."""
    found = re.search(r"errno = (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def filter_options(compression: str | None) -> dict[str, Any]:
    """What makes a dataset whose chunks are packed so.

    Raises:
        PipelineError: this program knows no such packing.
    """
    if compression is None:
        return {}
    if compression != "blosc2":
        raise PipelineError(f"compression {compression!r} is not known here: use a newer program.")
    import hdf5plugin

    return dict(hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=hdf5plugin.Blosc2.SHUFFLE))


class Packer:
    """Packs and unpacks (b, b) chunks as HDF5's filters do, by way of a file in memory that holds one chunk.

    So the bytes of a chunk can be checksummed as they lie on the disk, where no other code of the filter is at hand.
    """

    def __init__(self, compression: str, dtype: np.dtype[Any], size: int) -> None:
        self._file = h5py.File(
            f"packer-{next(NUMBERS)}", "w", driver="core", backing_store=False, rdcc_nbytes=0
        )
        shape = (size, size)
        options = filter_options(compression)
        self._chunk = self._file.create_dataset("chunk", shape, dtype, chunks=shape, **options)
        self._content = np.empty(shape, dtype)

    def pack(self, values: Array) -> tuple[bytes, int]:
        """The bytes, and the mask of the filters that were left out as they would not have made them fewer."""
        self._chunk[...] = values
        self._file.flush()
        mask, content = self._chunk.id.read_direct_chunk((0, 0))
        return bytes(content), int(mask)

    def unpack(self, content: bytes) -> Array:
        """The values.

        Raises:
            OSError: the bytes are not what `pack` gave.
        """
        if len(content) == self._content.nbytes:  # the filter was left out
            return np.frombuffer(content, self._chunk.dtype).reshape(self._chunk.shape)
        self._chunk.id.write_direct_chunk((0, 0), content)
        values: Array = self._chunk[...]
        return values

    def close(self) -> None:
        self._file.close()


def places_of(dataset: h5py.Dataset, num_bytes: int | None) -> Array:
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


def join_rows(file: h5py.File, num_rows: int, dtype: str, parts: Sequence[tuple[str, slice]]) -> None:
    """A dataset `matrix`, the lower triangle of which lies in the same dataset of other files: these rows in each.

    parts: paths, relative to the folder of this file, and rows. What is above the triangle reads as NaN.
    """
    shape = (num_rows, num_rows)
    virtual = h5py.VirtualLayout(shape, dtype)
    for name, rows in parts:
        triangle = np.s_[rows, : rows.stop]
        virtual[triangle] = h5py.VirtualSource(name, "matrix", shape)[triangle]
    matrix = file.create_virtual_dataset("matrix", virtual, fillvalue=np.nan)
    matrix.attrs["triangle"] = "lower"


def strings(values: Any) -> Array:
    """An array of texts that HDF5 stores."""
    return np.asarray(values, dtype=object).astype(h5py.string_dtype())


def attributes(file: h5py.File) -> dict[str, Any]:
    """The root attributes, as Python's own numbers, texts and lists of numbers."""
    return {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in file.attrs.items()
    }


def damaged(path: Path, why: str, remedy: str = RECOMPUTE) -> DamagedFile:
    return DamagedFile(path, why, remedy)


def _values(dataset: h5py.Dataset) -> Array:
    return np.asarray(dataset.asstr()[()] if h5py.check_string_dtype(dataset.dtype) else dataset[()])
