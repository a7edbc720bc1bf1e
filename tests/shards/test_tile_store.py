"""A shard in a storage format of its own is the shard in an HDF5 file, and no shard's module knows HDF5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.memory_store import MemoryStore
from support.shard_files import ATTRS, gradient_of, layout_of, symmetric

import pipeline
from pipeline.errors import DamagedFile, PipelineError
from pipeline.shards import open_shard, write_shard
from pipeline.shards.hdf5_store import HDF5
from pipeline.shards.tile_store import TileStore

PATH = Path("step-000120/batch-00000.h5")


def written(store: TileStore, path: Path, blocks: str = "all", dtype: str = "float64") -> pipeline.Shard:
    matrix, layout = symmetric(19, dtype), layout_of(19)
    attrs = {**ATTRS, "blocks": blocks}
    with write_shard(path, layout, dtype, attrs, gradient_of(19), 8, np.eye(19), store=store) as writer:
        for row in range(0, 19, 5):
            rows = slice(row, min(row + 5, 19))
            writer.add(rows, slice(0, 19), matrix[rows])
        writer.kept["products"] = writer.products
    return open_shard(path, store)


@pytest.mark.parametrize("blocks", ["all", "layer"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_shard_in_memory_is_the_one_in_a_file(tmp_path: Path, blocks: str, dtype: str) -> None:
    memory = MemoryStore()
    mine, usual = written(memory, PATH, blocks, dtype), written(HDF5, tmp_path / PATH, blocks, dtype)
    assert list(memory.files) == [PATH]
    assert not PATH.exists()
    assert (mine.attrs, mine.parameters, mine.dtype) == (usual.attrs, usual.parameters, usual.dtype)
    vectors = np.random.default_rng(1).normal(size=(19, 3))
    for mine_has, usual_has in (
        (mine.dense(), usual.dense()),
        (mine.gradient, usual.gradient),
        (mine.rows(3, 12), usual.rows(3, 12)),
        (mine.matvec(vectors), usual.matvec(vectors)),
        (mine.as_dask(1).compute(scheduler="synchronous"), usual.dense()),
    ):
        assert mine_has.dtype == usual_has.dtype
        np.testing.assert_array_equal(mine_has, usual_has)


def test_damage_is_found_in_any_storage_format() -> None:
    memory = MemoryStore()
    shard = written(memory, PATH)
    file = memory.files[PATH]
    content = file.tiles[1, 0]
    file.tiles[1, 0] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(DamagedFile, match=r"tile \(1, 0\) does not match its checksum"):
        shard.dense()
    file.attrs["loss"] = 0.5
    with pytest.raises(DamagedFile, match="do not match their checksum"):
        open_shard(PATH, memory)
    with pytest.raises(PipelineError, match="no such file"):
        open_shard(Path("step-000120/none"), memory)
