"""Shards: what is written and read, and how it lies in the file."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path

import dask
import h5py
import numpy as np
import pytest
from support.command import python
from support.shard_files import (
    ATTRS,
    alter,
    gradient_of,
    layout_of,
    symmetric,
    tile_bytes,
    write,
    writing,
)

from pipeline.errors import PipelineError
from pipeline.shards import Shard, mirrored, open_shard
from pipeline.shards.writer import FORMAT_VERSION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step-000120" / "batch-00000.h5"


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 16, 23, 24, 25])
@pytest.mark.parametrize("tile", [1, 5, 8, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_read_is_what_was_written(path: Path, num_rows: int, tile: int, dtype: str) -> None:
    matrix = symmetric(num_rows, dtype)
    shard = open_shard(write(path, matrix, tile))
    assert np.array_equal(shard.dense(), matrix)
    assert shard.dense().dtype == shard.dtype == np.dtype(dtype)
    assert shard.tile == min(tile, num_rows)
    assert shard.num_rows == num_rows
    assert np.array_equal(shard.gradient, gradient_of(num_rows))
    assert shard.parameters == layout_of(num_rows)


def rectangles(num_rows: int, rng: np.random.Generator) -> list[tuple[slice, slice]]:
    """A random grid's cells that touch the lower triangle, in random order."""
    row_cuts, column_cuts = (
        [0, *sorted(rng.choice(np.arange(1, num_rows), size=rng.integers(0, 6), replace=False)), num_rows]
        for _ in range(2)
    )
    spans = [[slice(*pair) for pair in pairwise(cuts)] for cuts in (row_cuts, column_cuts)]
    cells = [(rows, cols) for rows in spans[0] for cols in spans[1] if cols.start < rows.stop]
    rng.shuffle(cells)
    return [(slice(int(r.start), int(r.stop)), slice(int(c.start), int(c.stop))) for r, c in cells]


@pytest.mark.parametrize("seed", range(40))
def test_blocks_may_be_any_rectangles_in_any_order(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(7, 40))
    matrix = symmetric(num_rows, seed=seed)
    above = np.where(np.tri(num_rows, dtype=bool), matrix, rng.choice([1e9, np.nan]))
    with writing(path, matrix, int(rng.integers(3, 12))) as writer:
        for rows, cols in rectangles(num_rows, rng):
            writer.add(rows, cols, above[rows, cols])
    assert np.array_equal(open_shard(path).dense(), matrix)


def test_rows_one_by_one_and_whole_tiles(path: Path) -> None:
    matrix = symmetric(19)
    with writing(path, matrix) as writer:
        for i in range(19):
            writer.add(slice(i, i + 1), slice(0, i + 1), matrix[i : i + 1, : i + 1])
    copy = path.with_name("batch-00001.h5")
    shard = open_shard(path)
    with writing(copy, matrix) as writer:
        for tile, values in shard.tiles():
            padded = np.full((8, 8), np.nan)
            padded[: values.shape[0], : values.shape[1]] = values
            writer.put(tile, padded)
    assert np.array_equal(open_shard(copy).dense(), matrix)


def test_memory_is_the_tiles_that_are_begun(path: Path) -> None:
    matrix = symmetric(40)
    with writing(path, matrix) as writer:
        for i in range(40):
            writer.add(slice(i, i + 1), slice(0, 40), matrix[i : i + 1])
            assert len(writer._begun) <= 5
        assert not writer._begun


def test_any_hdf5_tool_reads_the_lower_triangle_and_nan_above(path: Path) -> None:
    matrix = symmetric(23)
    write(path, matrix)
    with h5py.File(path) as file:
        found, triangle = file["matrix"][:], file["matrix"].attrs["triangle"]
        assert file["matrix"].shape == (23, 23)
        assert np.isnan(file["matrix"].fillvalue)
    lower = np.tri(23, dtype=bool)
    assert triangle == b"lower"  # of a fixed length, which h5py gives as bytes
    assert np.array_equal(found[lower], matrix[lower])
    assert np.isnan(found[~lower]).all()


@pytest.mark.parametrize("what", ["attribute", "gradient", "checksums", "names"])
def test_what_is_altered_beside_the_tiles_is_found(path: Path, what: str) -> None:
    write(path, symmetric(23))
    with h5py.File(path, "r+") as file:
        if what == "attribute":
            file.attrs["loss"] = np.nextafter(file.attrs["loss"], 1)
        elif what == "gradient":
            file["gradient"][3] = np.nextafter(file["gradient"][3], 1)
        elif what == "checksums":
            file["checksums"][1, 0] += 1
        else:
            file["parameters/names"][1] = "net.other"
    with pytest.raises(PipelineError, match=r"damaged \(its attributes or gradient"):
        open_shard(path)


def test_attributes_and_names(path: Path) -> None:
    write(path, symmetric(23), step=120, batch_index=3, config_hash="abc", none_is_text="")
    shard = open_shard(path)
    expected = {**ATTRS, "step": 120, "batch_index": 3, "config_hash": "abc", "none_is_text": ""}
    own = {"format_version": FORMAT_VERSION, "dtype": "float64", "complete": True, "blocks": "all"}
    assert shard.attrs == {**expected, **own, "checksum": shard.attrs["checksum"]}
    assert {name: type(value) for name, value in shard.attrs.items() if name in ATTRS} == {
        name: type(value) for name, value in ATTRS.items()
    }
    json.dumps(shard.attrs)
    with h5py.File(path) as file:
        assert list(file["parameters/names"].asstr()[:]) == ["net.weight", "net.bias", "scale"]
        assert list(file["parameters/shapes"].asstr()[:]) == ["[20, 1]", "[2]", "[]"]
        assert list(file["parameters/offsets"][:]) == [0, 20, 22, 23]
        assert file["checksums"].shape == (3, 3)


def test_older_readers_are_kept_in_mind(path: Path) -> None:
    """HDF5 1.10 reads superblocks up to version 3; a newer one here would shut it out."""
    assert write(path, symmetric(9)).read_bytes()[8] <= 3


def test_size_is_little_over_half_of_the_dense_one(path: Path) -> None:
    write(path, symmetric(1100, "float32"), tile=64)
    num_tiles = 18 * 19 // 2
    tiles = num_tiles * 64 * 64 * 4
    assert tiles < path.stat().st_size < tiles + 60_000
    assert path.stat().st_size < 0.6 * 1100**2 * 4


def test_shape_of_tiles(path: Path) -> None:
    matrix = symmetric(19)
    shard = open_shard(write(path, matrix))
    found = dict(shard.tiles())
    assert list(found) == shard.tile_indices() == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert found[1, 0].shape == (8, 8)
    assert found[2, 1].shape == (3, 8)
    assert found[2, 2].shape == (3, 3)
    assert np.isnan(found[2, 2][np.triu_indices(3, 1)]).all()
    assert np.array_equal(mirrored(found[2, 2]), matrix[16:, 16:])
    assert [index for index, _ in shard.tiles([(2, 0), (1, 1)])] == [(2, 0), (1, 1)]


@pytest.mark.parametrize("shape", [(23,), (23, 1), (23, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matvec_is_the_product_of_the_dense_matrix(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    matrix, vectors = symmetric(23, dtype), np.random.default_rng(1).normal(size=shape)
    product = open_shard(write(path, matrix)).matvec(vectors)
    assert product.shape == shape
    assert product.dtype == np.float64
    assert np.abs(product - matrix.astype("float64") @ vectors).max() < 1e-13


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("span", [None, slice(0, 1), slice(5, 90), slice(64, 100)])
def test_matvec_of_many_tiles_has_the_same_bits_on_any_number_of_threads(
    path: Path, dtype: str, span: slice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of the matrix's dtype are multiplied in it, and summed up in float64."""
    matrix = symmetric(100, dtype)
    shard = open_shard(write(path, matrix))
    rows = span or slice(0, 100)
    vectors = np.random.default_rng(1).normal(size=(rows.stop - rows.start, 3)).astype(dtype)
    expected = matrix[rows, rows].astype("float64") @ vectors.astype("float64")
    products = []
    for num_threads, many in ((1, 1), (3, 1), (1, 10**6)):
        monkeypatch.setattr("pipeline.shards.matvec._num_threads", lambda n=num_threads: n)
        monkeypatch.setattr("pipeline.shards.matvec.MANY_TILES", many)
        products.append(shard.matvec(vectors, span))
    assert products[0].dtype == np.float64
    assert np.abs(products[0] - expected).max() < (1e-12 if dtype == "float64" else 3e-5)
    assert np.array_equal(products[0], products[1])
    assert np.array_equal(products[0], products[2])


def test_rows_and_blocks_by_slices_and_names(path: Path) -> None:
    matrix = symmetric(23)
    shard = open_shard(write(path, matrix))
    assert np.array_equal(shard.rows(5, 17), matrix[5:17])
    assert np.array_equal(shard.rows(22, 23), matrix[22:])
    assert np.array_equal(shard.block("net.bias", "net.weight"), matrix[20:22, :20])
    assert np.array_equal(shard.block("net.weight", slice(3, 9)), matrix[:20, 3:9])
    assert np.array_equal(shard.block(slice(None), slice(-3, None)), matrix[:, 20:])
    assert shard.block("scale", "scale").shape == (1, 1)
    with pytest.raises(PipelineError, match=r"has no parameter 'bias': it has net\.weight, net\.bias, scale"):
        shard.block("bias", "scale")
    for wrong in (slice(0, 24), slice(9, 3), slice(0, 10, 2)):
        with pytest.raises(PipelineError, match=r"has no rows slice.*: give a slice within 0 to 23"):
            shard.block(wrong, slice(0, 3))


@pytest.mark.parametrize("tiles_per_chunk", [1, 2, 5])
def test_a_shard_as_a_dask_array(path: Path, tiles_per_chunk: int) -> None:
    matrix = symmetric(23)
    lazy = open_shard(write(path, matrix)).as_dask(tiles_per_chunk)
    assert lazy.shape == (23, 23)
    assert lazy.dtype == matrix.dtype
    assert lazy.chunks[0][0] == min(8 * tiles_per_chunk, 23)
    with dask.config.set(scheduler="threads"):
        assert np.array_equal(lazy.compute(), matrix)
        assert np.array_equal(lazy[3:20, 7].compute(), matrix[3:20, 7])
        assert float(lazy.trace().compute()) == pytest.approx(np.trace(matrix), rel=1e-13)
    alter(path, tile_bytes(path)[0][0], b"12345678")
    with (
        pytest.raises(PipelineError, match="does not match its checksum"),
        dask.config.set(scheduler="threads"),
    ):
        lazy.compute()


def test_an_open_shard_can_be_handed_to_another_process(path: Path) -> None:
    matrix = symmetric(23)
    shard = pickle.loads(pickle.dumps(open_shard(str(write(path, matrix)))))
    assert isinstance(shard, Shard)
    assert np.array_equal(shard.dense(), matrix)
    assert np.array_equal(shard.gradient, gradient_of(23))


def test_reading_shards_needs_no_torch() -> None:
    program = "import sys, pipeline.shards.shard; sys.exit('torch' in sys.modules)"
    assert python("-c", program).returncode == 0
