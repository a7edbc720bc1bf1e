"""What a storage format must do so that shards can be kept in it: the one seam between shards and files.

`pipeline.shards.hdf5_store.HDF5` is the one that `storage=plain` and `storage=blosc2` lead to. Another one is the
`store` of a storage option, or is handed to `write_shard` and `open_shard`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tile = tuple[int, int]
ReadTile = tuple[
    Tile, Array | None, int
]  # the tile, its (b, b) values if there are enough bytes, their CRC-32


@dataclass(frozen=True)
class TileForm:
    """A (P, P) matrix in (b, b) tiles: num_rows is P, size is b; packed: what tiles are compressed with, or None."""

    num_rows: int
    size: int
    dtype: np.dtype[Any]
    packed: str | None = None

    @property
    def tile_bytes(self) -> int:
        """Of a tile that is not packed."""
        return self.size**2 * self.dtype.itemsize


class StoredFile(Protocol):
    """A complete file that is open for reading."""

    @property
    def attrs(self) -> dict[str, Any]:
        """Its attributes: Python's numbers, texts, and lists of numbers."""

    @property
    def names(self) -> Iterable[str]:
        """Of the arrays in it, groups included; that of the tiles is `matrix`."""

    @property
    def form(self) -> TileForm | None:
        """Of its tiles, or None where it has none."""

    def array(self, name: str) -> Array:
        """A whole array beside the tiles; texts as Python's."""


class UnfinishedFile(Protocol):
    """A file that is being written. `flush` and `sync` make tiles safe; only `sync` may run beside the other calls."""

    def write(self, tile: Tile, values: Array) -> int:
        """Store the (b, b) values of a tile, each tile once; gives the CRC-32 of the bytes that are stored."""

    def read(self, tiles: Sequence[Tile]) -> Iterator[ReadTile]:
        """Tiles that an earlier process has left."""

    def flush(self) -> None:
        """Hand all to the system: a process that is killed after this leaves a file that can be resumed."""

    def sync(self) -> None:
        """Wait until what was handed to the system is on the disk."""

    def link(self, bands: Sequence[tuple[str, slice]]) -> None:
        """Let other programs see the matrix, whose tiles lie in other files: (name, rows) of each; may do nothing."""

    def finish(self, attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Write all that the file has beside its tiles, in place of what an earlier process has left of it."""


class TileReader(Protocol):
    """Reads tiles of a complete file, inside a `with` block, in several threads at a time."""

    @property
    def path(self) -> Path: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def read(self, indices: Sequence[Tile], into: Array | None = None) -> Iterator[ReadTile]:
        """Each tile in turn; into: (b, b), memory that may be used for every one, good until the next is asked for."""

    def announce(self, tile: Tile) -> None:
        """Tell that a tile will be read soon; may do nothing."""


class TileStore(Protocol):
    """A storage format. It must be picklable, and hashable, as a `Shard` holds it.

    Paths end in `.h5` in every format, as the names in a run folder do not depend on it; what is at a path may be a
    folder. A file is written at `pipeline.system.partial_of(path)`, and takes its name when it is whole.
    All methods raise PipelineError, in one line, where a file cannot be read or written, and DamagedFile where its
    content is not what was written.
    """

    def __hash__(self) -> int: ...

    def create(
        self,
        path: Path,
        form: TileForm,
        num_bytes: int,
        resume: bool = False,
        is_resumable: Callable[[BaseException], bool] | None = None,
    ) -> AbstractContextManager[UnfinishedFile]:
        """A new file of at most `num_bytes`, which is at `path` only after a body that raised nothing.

        resume: with what an earlier process has left. is_resumable: whether an unfinished file stays for that, by the
        error.
        """

    def open(self, path: Path) -> AbstractContextManager[StoredFile]:
        """A complete file."""

    def reader(self, path: Path, form: TileForm) -> TileReader:
        """What reads the tiles of a complete file."""

    def stamp(self, path: Path) -> Hashable:
        """Something that differs when another file is at `path`."""

    def remove(self, path: Path) -> None:
        """Delete a file, if it is there."""
