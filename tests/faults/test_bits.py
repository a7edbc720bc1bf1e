"""Of 1,000 flipped bits none is read as something else or ends the process; of zeroed tiles all are found."""

import hashlib
import json
import os
import signal

import h5py
import numpy as np
import pytest
from support.report_cases import spectra

from pipeline.errors import DamagedFile, NotAShard, PipelineError
from pipeline.layout import Layout
from pipeline.results.spectra_file import SpectraFile
from pipeline.shards import open_shard, write_shard
from pipeline.shards.row_bands import Band, write_manifest
from pipeline.shards.tile_grid import TileGrid
from pipeline.shards.verify import damages

NUM_ROWS, TILE = 200, 16  # 13 rows of tiles, 91 tiles


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A shard, its content, and where its tiles lie."""
    path = tmp_path_factory.mktemp("bits") / "step-000001" / "batch-00000.h5"
    matrix = np.random.default_rng(0).normal(size=(NUM_ROWS, NUM_ROWS)).astype(np.float32)
    layout, gradient = Layout(("w",), ((NUM_ROWS,),)), np.zeros(NUM_ROWS)
    with write_shard(path, layout, "float32", {"loss": 0.5}, gradient, TILE) as writer:
        writer.add(slice(0, NUM_ROWS), slice(0, NUM_ROWS), matrix)
    tiles = tiles_of(path)
    assert len(tiles) == 91
    return path, path.read_bytes(), tiles


def tiles_of(path):
    """Offset and length of each."""
    tiles = []
    with h5py.File(path) as file:
        file["matrix"].id.chunk_iter(lambda chunk: tiles.append((chunk.byte_offset, chunk.size)))
    return tiles


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


def read_in_a_child(path):
    """What is read of a shard in a process of its own, None where it is damaged; that a bit kills it is a failure."""
    receiver, sender = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(60)
        try:
            shard = open_shard(path)
            told = json.dumps([shard.attrs, shard.parameters.names, shard.parameters.shapes]).encode()
            content = told + shard.dense().tobytes() + shard.gradient.tobytes()
            os.write(sender, hashlib.sha256(content).digest())
        except (DamagedFile, NotAShard):
            os.write(sender, b"damaged")
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as answer:
        found = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    assert found
    return None if found == b"damaged" else found


@pytest.mark.parametrize("kind", ["one file", "packed", "bands"])
def test_flipped_bits_outside_of_tiles(tmp_path, kind):
    """HDF5 or a checksum finds them, or they are where nothing is stored: what is read is what was written."""
    path, chance = tmp_path / "step-000001" / "batch-00000.h5", np.random.default_rng(2)
    layout, gradient = Layout(("w",), ((NUM_ROWS,),)), np.zeros(NUM_ROWS)
    matrix = np.ones((NUM_ROWS, NUM_ROWS), np.float32)
    attrs, grid = {"loss": 0.5, "matrix": "hessian", "dtype": "float32"}, TileGrid.of(layout, TILE)
    bands = [Band(index, 2) for index in range(2)] if kind == "bands" else [None]
    for band in bands:
        place, part = (path, None) if band is None else (band.path(path), band.tiles(grid))
        packed = "blosc2" if kind == "packed" else None
        with write_shard(place, layout, "float32", attrs, gradient, TILE, part=part, packed=packed) as writer:
            writer.add(slice(0, NUM_ROWS), slice(0, NUM_ROWS), matrix)
    if kind == "bands":
        write_manifest(path, layout, grid, attrs, gradient, 2)
    content = path.read_bytes()
    outside = np.ones(len(content), bool)
    if kind != "bands":
        for start, size in tiles_of(path):
            outside[start : start + size] = False
    whole, found = read_in_a_child(path), []
    assert whole is not None
    for place in chance.choice(np.flatnonzero(outside), 1000):
        path.write_bytes(flipped(content, chance, place, place + 1))
        found.append(read_in_a_child(path))
    assert set(found) <= {None, whole}
    assert found.count(None) > 500


def test_flipped_bits_in_spectra_and_slices(tmp_path):
    path, chance = tmp_path / "step-000120.h5", np.random.default_rng(4)
    spectra(num_batches=2, num_layers=2).write(path)
    content, whole = path.read_bytes(), SpectraFile.read(path)
    num_damaged = 0
    for _ in range(1000):
        path.write_bytes(flipped(content, chance))
        try:
            file = SpectraFile.read(path)
        except DamagedFile:
            num_damaged += 1
        else:  # a byte that holds nothing
            assert file.attrs == whole.attrs
            assert file.arrays.keys() == whole.arrays.keys()
            for name, values in whole.arrays.items():
                assert np.asarray(file.arrays[name]).tobytes() == np.asarray(values).tobytes()
    assert num_damaged > 900


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
