"""HDF5 files: written whole or not at all, errors in one line. The only module that imports h5py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.folder import replacing
from pipeline.raw_file import RawFile

Array = NDArray[Any]
File = h5py.File
RECOMPUTE = "delete it and run again, which recomputes this file alone"


@dataclass(frozen=True)
class Results:
    """Named numbers and arrays from one file."""

    attrs: dict[str, Any]
    arrays: dict[str, Array]


def write_results(path: Path, attrs: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write attributes and arrays (names may hold `/`; lists of strings are allowed), all or nothing."""
    encoded = {name: np.asarray(values) for name, values in arrays.items()}
    with writing(path, sum(array.nbytes for array in encoded.values()) + 2**20) as file:
        file.attrs.update(attrs)
        for name, array in encoded.items():
            file[name] = strings(array) if array.dtype.kind in "UO" else array


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote."""
    with reading(path) as file:
        arrays: dict[str, Array] = {}
        file.visititems(
            lambda name, item: arrays.update({name: _values(item)} if isinstance(item, h5py.Dataset) else {})
        )
        return Results(attributes(file), arrays)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Read whole arrays by name from anyone's HDF5 file.

    Raises:
        PipelineError: the file cannot be read, or has no array of that name.
    """
    with reading(path, "give another file") as file:
        present: list[str] = []
        file.visititems(lambda name, item: present.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            if name not in present:
                raise PipelineError(f"{path} has no array {name!r}: it has {', '.join(present) or 'none'}.")
        return {name: _values(file[name]) for name in names}


@contextmanager
def writing(path: Path, num_bytes: int) -> Iterator[h5py.File]:
    """A new file, which takes its name when it is whole and on disk.

    Room for it is reserved first, so that a full disk is told before anything is computed. HDF5 writes through a
    `RawFile`, as it cannot close a file that it cannot write.

    Raises:
        PipelineError: the file cannot be written.
    """
    with replacing(path) as partial:
        partial.unlink(missing_ok=True)
        raw = RawFile(partial, num_bytes)
        with closing(raw), _created(partial, raw) as file:
            yield file


def _created(path: Path, raw: RawFile) -> h5py.File:
    return h5py.File(path, "w", libver=("earliest", "v110"), driver="fileobj", fileobj=raw)


@contextmanager
def reading(path: Path, remedy: str = RECOMPUTE) -> Iterator[h5py.File]:
    if not path.is_file():
        raise PipelineError(f"{path}: no such file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise damaged(path, "HDF5 cannot open it", remedy) from error
    with file:
        try:
            yield file
        except (KeyError, OSError, RuntimeError) as error:
            raise damaged(path, str(error).strip("'\""), remedy) from error


def strings(values: Any) -> Array:
    """An array of texts that HDF5 stores."""
    return np.asarray(values, dtype=object).astype(h5py.string_dtype())


def attributes(file: h5py.File) -> dict[str, Any]:
    """The root attributes, as Python's own numbers and texts."""
    return {
        name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()
    }


def damaged(path: Path, why: str, remedy: str = RECOMPUTE) -> PipelineError:
    return PipelineError(f"{path} is damaged ({why}): {remedy}.")


def _values(dataset: h5py.Dataset) -> Array:
    return np.asarray(dataset.asstr()[()] if h5py.check_string_dtype(dataset.dtype) else dataset[()])
