"""HDF5 files: written whole or not at all, errors in one line. Only this module and `hdf5_store` import h5py.

They are of the format of HDF5 1.10, whose own structures have checksums, and texts have a fixed length: those of any
length lie in a heap that has none, where a flipped bit can hang or end the process. What the format leaves unchecked,
the content of arrays, has checksums of its own: tiles, what a shard has beside them, and files of results.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DamagedFile, PipelineError
from pipeline.shards.tile_store import Array as Array
from pipeline.shards.write_ahead_file import RawFile, replay
from pipeline.system import fault_behind, partial_of, replacing, unreadable

File = h5py.File
NUMBERS = count()  # HDF5 tells files in memory apart by name
CACHE_BYTES = 2**22  # asked for before a file is opened, which 640 kB are enough for
RECOMPUTE = "delete it and run again, which recomputes this file alone"


@dataclass(frozen=True)
class ArrayFile:
    """Named numbers and arrays from one file."""

    attrs: dict[str, Any]
    arrays: dict[str, Array]


def write_array_file(
    path: Path,
    attrs: Mapping[str, Any],
    arrays: Mapping[str, Any],
    texts: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write attributes and arrays (names may hold `/`; lists of strings are allowed), all or nothing.

    texts: attributes of the arrays themselves, by their names; they are for other readers and not read back.
    """
    encoded = {name: np.asarray(values) for name, values in arrays.items()}
    with writing(path, sum(array.nbytes for array in encoded.values()) + 2**20) as output:
        stored = stored_attributes(attrs)
        replace_content(output.file, {**stored, "checksum": _checksum(stored, encoded)}, encoded)
        for name, own in (texts or {}).items():
            for key, text in own.items():
                output.file[name].attrs[key] = strings(text)


def read_array_file(path: Path) -> ArrayFile:
    """Read what `write_array_file` wrote; version 0.1 wrote no checksum.

    Raises:
        PipelineError: it cannot be read; `DamagedFile`, if it is not what was written.
    """
    with reading(path) as file:
        attrs = attributes(file)
        names = [name for name in names_in(file) if isinstance(file[name], h5py.Dataset)]
        arrays = {name: array_of(file, name) for name in names}
    checksum = attrs.pop("checksum", None)
    if checksum not in (None, _checksum(attrs, arrays)):
        raise damaged(path, "it is not what was written")
    return ArrayFile(attrs, arrays)


def _checksum(attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> int:
    """CRC-32 of attributes and arrays, texts as those of Python."""
    crc = zlib.crc32(json.dumps(attrs, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        is_text = array.dtype.kind in "UO"
        crc = zlib.crc32(f"{name} {'text' if is_text else array.dtype.str} {array.shape}".encode(), crc)
        crc = zlib.crc32(json.dumps(array.tolist()).encode() if is_text else array.tobytes(), crc)
    return crc


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Read whole arrays by name from anyone's HDF5 file.

    Raises:
        PipelineError: the file cannot be read, or has no array of that name.
    """
    with reading(path, "give another file") as file:
        present = [name for name in names_in(file) if isinstance(file[name], h5py.Dataset)]
        for name in names:
            if name not in present:
                raise PipelineError(f"{path} has no array {name!r}: it has {', '.join(present) or 'none'}.")
        return {name: array_of(file, name) for name in names}


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
    path: Path,
    num_bytes: int,
    go_on: bool = False,
    is_resumable: Callable[[BaseException], bool] | None = None,
) -> Iterator[Output]:
    """A new file, which takes its name when it is whole and on disk.

    Room for it is reserved first, so that a full disk is told before anything is computed. HDF5 writes through a
    `RawFile`, as it cannot close a file that it cannot write.
    go_on: with what an earlier process left under the temporary name, if it can be opened.
    is_resumable: see `replacing`; with it, what a kill leaves is the file as last flushed.

    Raises:
        PipelineError: the file cannot be written.
    """
    redo = path.with_name(path.name + ".redo") if is_resumable is not None else None
    try:
        with replacing(path, is_resumable) as partial:
            go_on = go_on and redo is not None and _opens(partial, redo)
            if not go_on:
                partial.unlink(missing_ok=True)
            with closing(RawFile(partial, num_bytes, redo)) as raw:
                with _opened(
                    partial,
                    "r+" if go_on else "w",
                    libver=("v110", "v110"),
                    driver="fileobj",
                    fileobj=raw,
                ) as file:
                    yield Output(file, raw)
                raw.finish()
    finally:
        if redo is not None and not partial_of(path).exists():
            with suppress(OSError):  # what went wrong first is what is told
                redo.unlink(missing_ok=True)


def _opens(path: Path, redo: Path) -> bool:
    """Whether what an earlier process left can be gone on with: its chunks are found."""
    try:
        replay(path, redo)
        with _opened(path, "r") as file:
            file["matrix"].id.chunk_iter(lambda _: None)
    except (KeyError, OSError, RuntimeError):
        return False
    return True


@contextmanager
def reading(path: Path, remedy: str = RECOMPUTE) -> Iterator[h5py.File]:
    """An HDF5 file.

    Raises:
        PipelineError: it is not there, it is damaged (`DamagedFile`), or the disk has a fault.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file.")
    try:
        file = _opened(path, "r")
    except OSError as error:
        raise _unread(path, error, "HDF5 cannot open it", remedy) from error
    with file:
        try:
            yield file
        except (KeyError, OSError, RuntimeError, UnicodeDecodeError) as error:
            raise _unread(path, error, " ".join(str(error).strip("'\"").split()), remedy) from error


def _opened(*arguments: Any, **options: Any) -> h5py.File:
    """h5py.File, once there is memory for its cache: HDF5 2.0 ends the process by SIGSEGV where it gets none.

    Raises:
        MemoryError: there is none.
    """
    np.empty(CACHE_BYTES, np.uint8)
    return h5py.File(*arguments, **options)


def _unread(path: Path, error: Exception, why: str, remedy: str) -> PipelineError | MemoryError:
    """A fault of the disk, or memory that ran out, says nothing of the file, which must not be deleted then."""
    if re.search("memory allocation failed|can't allocate|unable to allocate", str(error)):
        return MemoryError(str(error))
    fault = fault_behind(error)
    return damaged(path, why, remedy) if fault is None else unreadable(path, fault)


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
        self._file = _opened(
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


def replace_content(file: h5py.File, attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write attributes and arrays, in place of all that the file has beside `matrix`."""
    for name in set(file) - {"matrix"}:
        del file[name]
    for name in list(file.attrs):
        del file.attrs[name]
    for name, array in arrays.items():
        *groups, last = name.split("/")
        group: h5py.Group = file
        for each in groups:  # one by one: a group that HDF5 makes by itself holds the time
            group = group.require_group(each)
        group[last] = strings(array) if array.dtype.kind in "UO" else array
    for name, value in attrs.items():
        file.attrs[name] = strings(value) if isinstance(value, str) else value


def strings(values: Any) -> Array:
    """An array of texts that HDF5 stores in so many bytes each."""
    encoded = np.char.encode(np.asarray(values, dtype=str), "utf-8")
    return encoded.astype(h5py.string_dtype("utf-8", max(1, encoded.dtype.itemsize)))


def stored_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as `attributes` gives them when they have been stored."""
    return {name: np.asarray(value).tolist() for name, value in attrs.items()}


def attributes(file: h5py.File) -> dict[str, Any]:
    """The root attributes, as Python's own numbers, texts and lists of numbers."""
    return {
        name: _text(np.asarray(value)).tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in file.attrs.items()
    }


def names_in(group: h5py.Group, prefix: str = "") -> list[str]:
    """Of all datasets and groups, except what is in a group `matrix`.

    `matrix` is not opened: of one that links to other files HDF5 reads a heap without checksums.
    """
    names: list[str] = []
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            names.append(prefix + name)
            if names[-1] != "matrix" and isinstance(group[name], h5py.Group):
                names += names_in(group[name], f"{prefix}{name}/")
    return names


def array_of(file: h5py.File, name: str) -> Array:
    """A whole array; texts as Python's."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"{name} is not an array")
    return np.asarray(dataset.asstr()[()] if h5py.check_string_dtype(dataset.dtype) else dataset[()])


def _text(value: Array) -> Array:
    return np.char.decode(value, "utf-8") if value.dtype.kind == "S" else value


def damaged(path: Path, why: str, remedy: str = RECOMPUTE) -> DamagedFile:
    return DamagedFile(path, why, remedy)
