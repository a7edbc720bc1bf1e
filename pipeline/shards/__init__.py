"""Symmetric matrices on disk, in tiles of their lower triangle."""

from pipeline.shards import row_bands
from pipeline.shards.hdf5 import Array, ArrayFile, damaged, read_array_file, read_arrays, write_array_file
from pipeline.shards.hdf5_store import HDF5
from pipeline.shards.row_bands import Band, assign_bands
from pipeline.shards.shard import SHARED, Shard, open_shard
from pipeline.shards.tile_grid import Tile, TileGrid, file_size, mirrored
from pipeline.shards.tile_journal import TileJournal
from pipeline.shards.tile_store import TileStore
from pipeline.shards.writer import ShardWriter, write_shard
