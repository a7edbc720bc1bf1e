"""A shard in another storage format is the shard in an HDF5 file, whatever interrupts or damages it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.shard_files import ATTRS, gradient_of, layout_of, symmetric
from support.storage_formats import STORES

from pipeline.errors import DamagedFile, PipelineError
from pipeline.shards import HDF5, Shard, TileStore, open_shard, write_shard
from pipeline.shards.tile_store import TileForm

NAME = "step-000120/batch-00000.h5"
ROWS = [slice(row, min(row + 5, 19)) for row in range(0, 19, 5)]  # of the blocks that are written

each_store = pytest.mark.parametrize("store", STORES.values(), ids=STORES)


def written(
    store: TileStore,
    path: Path,
    blocks: str = "all",
    dtype: str = "float64",
    stop: int = 19,
    missing: list[slice] | None = None,
) -> Shard:
    """stop: the row before which writing is cut short. missing: gets the rows that are not there yet."""
    matrix, layout = symmetric(19, dtype), layout_of(19)
    attrs = {**ATTRS, "blocks": blocks}
    options = dtype, attrs, gradient_of(19), 8, np.eye(19), {"of": "this"}
    with write_shard(path, layout, *options, store=store) as writer:
        for rows in ROWS:
            if rows.start < stop and writer.is_missing(rows, slice(0, 19)):
                (missing if missing is not None else []).append(rows)
                writer.add(rows, slice(0, 19), matrix[rows])
        if stop < 19:
            raise KeyboardInterrupt
        writer.extra_arrays["products"] = writer.products
    return open_shard(path, store)


@each_store
@pytest.mark.parametrize("blocks", ["all", "layer"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_shard_is_the_one_in_an_hdf5_file(
    tmp_path: Path, store: TileStore, blocks: str, dtype: str
) -> None:
    own, usual = (
        written(one, tmp_path / f"{n}" / NAME, blocks, dtype) for n, one in enumerate([store, HDF5])
    )
    assert (own.attrs, own.parameters, own.dtype) == (usual.attrs, usual.parameters, usual.dtype)
    vectors = np.random.default_rng(1).normal(size=(19, 3))
    for own_has, usual_has in (
        (own.dense(), usual.dense()),
        (own.gradient, usual.gradient),
        (own.array("products"), usual.array("products")),
        (own.rows(3, 12), usual.rows(3, 12)),
        (own.matvec(vectors), usual.matvec(vectors)),
        (own.as_dask(1).compute(scheduler="synchronous"), usual.dense()),
    ):
        assert own_has.dtype == usual_has.dtype
        np.testing.assert_array_equal(own_has, usual_has)


@each_store
def test_one_that_is_cut_short_is_gone_on_with(tmp_path: Path, store: TileStore) -> None:
    path, missing = tmp_path / NAME, []
    with pytest.raises(KeyboardInterrupt):
        written(store, path, stop=15)
    assert not path.exists()
    np.testing.assert_array_equal(written(store, path, missing=missing).dense(), symmetric(19))
    assert missing == ROWS[1:]  # the first ones make up the first tile


@each_store
def test_one_that_is_not_to_be_gone_on_with_leaves_nothing(tmp_path: Path, store: TileStore) -> None:
    path = tmp_path / NAME
    form = TileForm(19, 8, np.dtype("float64"))
    with pytest.raises(KeyboardInterrupt), store.create(path, form, 10_000):
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def contents(path: Path, store: TileStore) -> tuple[Any, ...] | None:
    """All that a shard holds; None, where it is told that it cannot be read."""
    try:
        shard = open_shard(path, store)
        arrays = shard.dense(), shard.gradient, shard.array("products")
    except PipelineError:
        return None
    return shard.attrs, shard.parameters, *(array.tobytes() for array in arrays)


@each_store
def test_a_flipped_bit_is_told_or_changes_nothing(tmp_path: Path, store: TileStore) -> None:
    path = tmp_path / NAME
    written(store, path)
    expected, outcomes = contents(path, store), []
    assert expected is not None
    for file in sorted(each for each in [path, *path.rglob("*")] if each.is_file()):
        content = file.read_bytes()
        for place in range(0, len(content), 29):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            outcomes.append(contents(path, store))
        file.write_bytes(content)
    assert None in outcomes
    assert all(outcome in (None, expected) for outcome in outcomes)
    assert contents(path, store) == expected


@each_store
def test_what_is_not_there_is_told(tmp_path: Path, store: TileStore) -> None:
    with pytest.raises(PipelineError, match="no such"):
        open_shard(tmp_path / "none", store)
    store.remove(tmp_path / "none")
    written(store, tmp_path / NAME)
    store.remove(tmp_path / NAME)
    assert not (tmp_path / NAME).exists()


def test_damage_of_a_tile_names_it(tmp_path: Path) -> None:
    path = tmp_path / NAME
    shard = written(STORES["npy"], path)
    file = path / "1-0.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFile, match=r"tile \(1, 0\) does not match its checksum"):
        shard.dense()
    attrs = path / "attrs.json"
    attrs.write_text(attrs.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(DamagedFile, match="do not match their checksum"):
        open_shard(path, STORES["npy"])
