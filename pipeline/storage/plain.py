from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.shards import HDF5, TileStore
from pipeline.validation import check_choice, check_count


@dataclass(frozen=True)
class Plain:
    """Tiles as they are: the fastest, and any HDF5 tool reads them.

    tile: rows and columns of one. precision: float32 halves the file of a matrix that is computed in float64; the
    shard says how far the rounding moved an entry. null stores what is computed.
    """

    tile: int = 512
    precision: str | None = None
    compression: ClassVar[str | None] = None
    store: ClassVar[TileStore] = HDF5

    def __post_init__(self) -> None:
        check_count("storage.tile", self.tile)
        if self.precision is not None:
            check_choice("storage.precision", self.precision, ("float32", "float64"))
