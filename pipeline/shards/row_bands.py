"""Bands: the rows of tiles of one matrix, dealt to several processes, each of which writes a file of its own.

`batch-00000.bands/1-of-2.h5` is a shard that holds the tiles of its rows and no others. When all bands are whole,
`batch-00000.h5` is written, the manifest: `/matrix` there is a virtual dataset over the bands, so that any HDF5 tool
sees the matrix in one piece, and `/checksums` are those of all tiles. A manifest and its bands belong together.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.layout import Layout
from pipeline.shards.hdf5_store import HDF5
from pipeline.shards.tile_grid import Tile, TileGrid
from pipeline.shards.tile_store import Array, TileForm, TileStore
from pipeline.shards.writer import finish
from pipeline.system import partial_of

FEWEST_ROWS = 4  # of tiles in a band, below which a matrix is not worth another process
FOR_A_WORKER = (
    2  # bands: some strategies take as long for a short row as for a long one; who is done takes the next
)
NAME = re.compile(r"(\d+)-of-(\d+)\.h5.*")


@dataclass(frozen=True)
class Band:
    """One of several bands; index: from 0."""

    index: int
    number: int

    def path(self, shard: Path) -> Path:
        """Its file, for a matrix that is to be at `shard`."""
        return _folder(shard) / f"{self.index + 1}-of-{self.number}.h5"

    def tile_rows(self, grid: TileGrid) -> range:
        """Its rows of tiles: as many tiles in each band, as nearly as whole rows allow."""
        sums = np.cumsum(grid.tile_mask().sum(axis=1))
        cuts = np.searchsorted(sums, sums[-1] * np.arange(1, self.number) / self.number)
        ends = [0, *(int(cut) + 1 for cut in cuts), grid.num_tile_rows]
        return range(*ends[self.index : self.index + 2])

    def tiles(self, grid: TileGrid) -> list[Tile]:
        return [(i, j) for i in self.tile_rows(grid) for j in range(i + 1)]

    @property
    def attrs(self) -> dict[str, int]:
        """What its file says beside what a shard does."""
        return {"band": self.index, "num_bands": self.number}


def _folder(shard: Path) -> Path:
    return shard.with_suffix(".bands")


def number_there(shard: Path) -> int | None:
    """Into how many bands a matrix has been parted before, if any of them has been begun."""
    found = [NAME.fullmatch(path.name) for path in sorted(_folder(shard).glob("*-of-*"))]
    return next((int(match[2]) for match in found if match), None)


def assign_bands(shards: Sequence[Path], grid: TileGrid, num_workers: int) -> list[tuple[int, Band | None]]:
    """What each call computes, so that every worker has work: shards by index, each whole (None) or a band of it.

    What an earlier run has begun is gone on with as it was begun.
    """
    share = -(-num_workers // max(1, len(shards)))
    wanted = min(share * FOR_A_WORKER if share > 1 else 1, grid.num_tile_rows // FEWEST_ROWS)
    calls: list[tuple[int, Band | None]] = []
    for index, shard in enumerate(shards):
        number = number_there(shard) or (1 if partial_of(shard).exists() else wanted)
        calls += [(index, Band(k, number)) for k in range(number)] if number > 1 else [(index, None)]
    return calls


def write_manifest(
    shard: Path,
    layout: Layout,
    grid: TileGrid,
    attrs: Mapping[str, Any],
    gradient: Array,
    number: int,
    store: TileStore = HDF5,
) -> None:
    """Write the manifest of a matrix whose bands are all whole."""
    bands = [Band(index, number) for index in range(number)]
    paths = [band.path(shard) for band in bands]
    each = [_checksums_in(path, store) for path in paths]
    checksums: Array = np.bitwise_or.reduce(each)  # those of other bands' tiles are zeros in each
    starts = [band.tile_rows(grid).start for band in bands]
    ends = [*(start * grid.size for start in starts[1:]), grid.num_rows]
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    spans = [slice(start * grid.size, end) for start, end in zip(starts, ends, strict=True)]
    all_attrs = {**attrs, "tile": grid.size, "bands": json.dumps(list(zip(names, starts, strict=True)))}
    form = TileForm(grid.num_rows, grid.size, np.dtype(attrs["dtype"]))
    with store.create(shard, form, checksums.nbytes + gradient.nbytes + 2**20) as output:
        output.link(list(zip(names, spans, strict=True)))
        finish(output, layout, checksums, gradient, all_attrs)


def _checksums_in(path: Path, store: TileStore) -> Array:
    with store.open(path) as file:
        return file.array("checksums")


def files_of(shard: Path, attrs: Mapping[str, Any]) -> list[tuple[Path, int]]:
    """The files that hold the tiles of a shard, and the first row of tiles in each."""
    if "bands" not in attrs:
        return [(shard, 0)]
    return [(shard.parent / name, start) for name, start in json.loads(attrs["bands"])]


def remove(shard: Path) -> None:
    """Delete the bands of a matrix."""
    shutil.rmtree(_folder(shard), ignore_errors=True)
