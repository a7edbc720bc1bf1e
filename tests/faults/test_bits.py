"""1,000 of 1,000 flipped bits in tiles and 100 of 100 zeroed tiles are found; no other one changes what is read."""

import h5py
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.shards import open_shard, write_shard
from pipeline.verify import damages

NUM_ROWS, TILE = 200, 16  # 13 rows of tiles, 91 tiles


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A shard, its content, and where its tiles lie."""
    path = tmp_path_factory.mktemp("bits") / "step-000001" / "batch-00000.h5"
    matrix = np.random.default_rng(0).normal(size=(NUM_ROWS, NUM_ROWS)).astype(np.float32)
    layout, gradient = Layout(("w",), ((NUM_ROWS,),)), np.zeros(NUM_ROWS)
    with write_shard(path, layout, "float32", {"loss": 0.5}, gradient, TILE) as writer:
        writer.add(slice(0, NUM_ROWS), slice(0, NUM_ROWS), matrix)
    tiles = []
    with h5py.File(path) as file:
        file["matrix"].id.chunk_iter(lambda chunk: tiles.append((chunk.byte_offset, chunk.size)))
    assert len(tiles) == 91
    return path, path.read_bytes(), tiles


def everything(path):
    shard = open_shard(path)
    return shard.dense(), shard.gradient, shard.attrs, shard.parameters


def test_flipped_bits_in_tiles(shard):
    path, content, tiles = shard
    chance = np.random.default_rng(1)
    for _ in range(1000):
        start, size = tiles[chance.integers(len(tiles))]
        altered = bytearray(content)
        altered[start + chance.integers(size)] ^= 1 << chance.integers(8)
        path.write_bytes(altered)
        with pytest.raises(PipelineError, match="does not match its checksum"):
            open_shard(path).dense()
        [damage] = damages([path])
        assert damage.path == path


def test_flipped_bits_anywhere_are_found_or_change_nothing(shard):
    """Outside of the tiles some bytes of HDF5's are never looked at."""
    path, content, _ = shard
    path.write_bytes(content)
    whole = everything(path)
    chance = np.random.default_rng(2)
    num_found = 0
    for _ in range(300):
        altered = bytearray(content)
        altered[chance.integers(len(content))] ^= 1 << chance.integers(8)
        path.write_bytes(altered)
        try:
            found = everything(path)
        except PipelineError:
            num_found += 1
            continue
        for one, other in zip(found, whole, strict=True):
            assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    assert num_found > 200


def test_zeroed_tiles(shard):
    path, content, tiles = shard
    chance = np.random.default_rng(3)
    for _ in range(100):
        start, size = tiles[chance.integers(len(tiles))]
        altered = bytearray(content)
        altered[start : start + size] = bytes(size)
        path.write_bytes(altered)
        with pytest.raises(PipelineError, match="does not match its checksum"):
            open_shard(path).dense()
        assert len(damages([path])) == 1
