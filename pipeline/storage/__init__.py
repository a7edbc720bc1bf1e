"""How a matrix lies in its file. Readers see the numbers, whatever the choice is.

To add one: a file here with a frozen dataclass, its name below, and `conf/storage/<name>.yaml`.
"""

from __future__ import annotations

from typing import Protocol

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


AS_COMPUTED = Plain()
