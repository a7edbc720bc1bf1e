"""How a matrix lies in its file. Readers see the numbers, whatever the choice is.

To add one: a file here with a frozen dataclass, its name below, and `conf/storage/<name>.yaml`. A class of your own
that is on PYTHONPATH is chosen by `storage._target_=module.Class`: one derived from `Plain` with a `store` of its own
keeps shards in another format than HDF5.
"""

from __future__ import annotations

from typing import Protocol

from pipeline.shards import TileStore
from pipeline.storage.blosc2 import Blosc2
from pipeline.storage.plain import Plain


class Storage(Protocol):
    """Options of one form of shards."""

    @property
    def tile(self) -> int:
        """Rows and columns of a tile."""
        ...

    @property
    def precision(self) -> str | None:
        """The dtype that is stored; None for the one in which the matrix is computed."""
        ...

    @property
    def compression(self) -> str | None:
        """What each tile is packed with."""
        ...

    @property
    def store(self) -> TileStore:
        """What writes and reads the files."""
        ...


AS_COMPUTED = Plain()
