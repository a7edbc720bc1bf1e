"""A storage option of somebody's own: a shard is a folder with one .npy file a tile. All that another format takes.

`tests/shards/test_tile_store.py` holds it to what `pipeline/shards/tile_store.py` asks for.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np

from pipeline.errors import DamagedFile, PipelineError
from pipeline.shards import TileStore
from pipeline.shards.tile_store import Array, ReadTile, Tile, TileForm
from pipeline.storage import Plain
from pipeline.system import partial_of


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What NumPy, zip and JSON raise where a file is not what was written, as the error that a store raises."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, BadZipFile, zlib.error) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise DamagedFile(path, why, "compute it again") from error


@dataclass(frozen=True)
class NpyFolder:
    """A shard, being written or complete; attrs and arrays beside the tiles lie in two files."""

    path: Path
    form: TileForm

    @property
    def attrs(self) -> dict[str, Any]:
        with readable(self.path):
            return dict(json.loads((self.path / "attrs.json").read_text()))

    @property
    def names(self) -> list[str]:
        with readable(self.path), np.load(self.path / "arrays.npz") as arrays:
            return ["matrix", *arrays]

    def array(self, name: str) -> Array:
        with readable(self.path), np.load(self.path / "arrays.npz") as arrays:
            return np.asarray(arrays[name])

    def tile(self, tile: Tile) -> Path:
        return self.path / f"{tile[0]}-{tile[1]}.npy"

    def write(self, tile: Tile, values: Array) -> int:
        np.save(self.tile(tile), values)
        return zlib.crc32(values.tobytes())

    def read(self, indices: Sequence[Tile], into: Array | None = None) -> Iterator[ReadTile]:
        for tile in indices:
            try:
                values = np.load(self.tile(tile))
            except (OSError, ValueError):
                yield tile, None, 0
            else:
                yield tile, values, zlib.crc32(values.tobytes())

    def flush(self) -> None: ...

    def sync(self) -> None:
        os.sync()

    def link(self, bands: Sequence[tuple[str, slice]]) -> None: ...

    def announce(self, tile: Tile) -> None: ...

    def finish(self, attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        form = {"num_rows": self.form.num_rows, "size": self.form.size, "dtype": str(self.form.dtype)}
        (self.path / "form.json").write_text(json.dumps(form))
        (self.path / "attrs.json").write_text(json.dumps(dict(attrs)))
        np.savez(self.path / "arrays.npz", **arrays)

    def __enter__(self) -> NpyFolder:
        return self

    def __exit__(self, *error: object) -> None: ...


@dataclass(frozen=True)
class NpyStore:
    @contextmanager
    def create(
        self,
        path: Path,
        form: TileForm,
        num_bytes: int,
        resume: bool = False,
        is_resumable: Callable[[BaseException], bool] | None = None,
    ) -> Iterator[NpyFolder]:
        partial = partial_of(path)
        if not resume:
            self.remove(partial)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            yield NpyFolder(partial, form)
            self.remove(path)
            os.replace(partial, path)
        except BaseException as error:
            if is_resumable is None or not is_resumable(error):
                self.remove(partial)
            if isinstance(error, OSError):
                raise PipelineError(
                    f"{path} could not be written ({error}): choose another folder."
                ) from error
            raise

    @contextmanager
    def open(self, path: Path) -> Iterator[NpyFolder]:
        if not path.is_dir():
            raise PipelineError(f"{path}: no such folder.")
        with readable(path):
            told = json.loads((path / "form.json").read_text())
            form = TileForm(told["num_rows"], told["size"], np.dtype(told["dtype"]))
        yield NpyFolder(path, form)

    def reader(self, path: Path, form: TileForm) -> NpyFolder:
        return NpyFolder(path, form)

    def stamp(self, path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_ino, status.st_mtime_ns

    def remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Npy(Plain):
    """Chosen by `storage._target_=npy_storage.Npy`."""

    store: ClassVar[TileStore] = NpyStore()
