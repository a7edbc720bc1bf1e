"""1,000 of 1,000 flipped bits and 100 of 100 zeroed tiles are found, in any place of shards, spectra and slices."""

import h5py
import numpy as np
import pytest
from report_cases import spectra

from pipeline.errors import DamagedFile, PipelineError
from pipeline.layout import Layout
from pipeline.shards import open_shard, write_shard
from pipeline.spectra_file import SpectraFile
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


def test_flipped_bits_in_tiles(shard):
    path, content, tiles = shard
    chance = np.random.default_rng(1)
    for _ in range(1000):
        start, size = tiles[chance.integers(len(tiles))]
        altered = flipped(content, chance, start, start + size)
        path.write_bytes(altered)
        with pytest.raises(PipelineError, match="does not match its checksum"):
            open_shard(path).dense()
        [damage] = damages([path])
        assert damage.path == path


def flipped(content, chance, start=0, stop=None):
    """The content, with one bit of it altered."""
    altered = bytearray(content)
    altered[chance.integers(start, len(content) if stop is None else stop)] ^= 1 << chance.integers(8)
    return altered


def test_flipped_bits_outside_of_tiles(shard):
    """HDF5 itself would not find them all, and die of some."""
    path, content, tiles = shard
    inside = np.zeros(len(content), bool)
    for start, size in tiles:
        inside[start : start + size] = True
    outside, chance = np.flatnonzero(~inside), np.random.default_rng(2)
    assert len(outside) > 1000
    for place in chance.choice(outside, 1000):
        path.write_bytes(flipped(content, chance, place, place + 1))
        with pytest.raises(DamagedFile):
            open_shard(path)
        assert len(damages([path])) == 1


def test_flipped_bits_in_spectra_and_slices(tmp_path):
    path, chance = tmp_path / "step-000120.h5", np.random.default_rng(4)
    spectra(num_batches=2, num_layers=2).write(path)
    content = path.read_bytes()
    for _ in range(1000):
        path.write_bytes(flipped(content, chance))
        with pytest.raises(DamagedFile):
            SpectraFile.read(path)


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
