"""Symmetric matrices on disk, in tiles of their lower triangle."""

from pipeline.shards import row_bands
from pipeline.shards.hdf5 import Array, Results, damaged, read_arrays, read_results, write_results
from pipeline.shards.matrix_views import Part, Scaled
from pipeline.shards.row_bands import Band, dealt
from pipeline.shards.shard import SHARED, Shard, open_shard
from pipeline.shards.tile_grid import Grid, Tile, file_size, mirrored
from pipeline.shards.tile_journal import Journal
from pipeline.shards.writer import ShardWriter, write_shard
