"""A shard in a storage format of its own is the shard in an HDF5 file, and no shard's module knows HDF5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.npy_storage import NpyStore
from support.shard_files import ATTRS, gradient_of, layout_of, symmetric

from pipeline.errors import DamagedFile, PipelineError
from pipeline.shards import HDF5, Shard, TileStore, open_shard, write_shard
from pipeline.system import partial_of

NAME = "step-000120/batch-00000.h5"
OWN = NpyStore()


def written(
    store: TileStore, path: Path, blocks: str = "all", dtype: str = "float64", stop: int = 19
) -> Shard:
    """stop: the row before which writing is cut short."""
    matrix, layout = symmetric(19, dtype), layout_of(19)
    attrs = {**ATTRS, "blocks": blocks}
    options = dtype, attrs, gradient_of(19), 8, np.eye(19), {"of": "this"}
    with write_shard(path, layout, *options, store=store) as writer:
        for row in range(0, stop, 5):
            rows = slice(row, min(row + 5, 19))
            if writer.is_missing(rows, slice(0, 19)):
                writer.add(rows, slice(0, 19), matrix[rows])
        if stop < 19:
            raise KeyboardInterrupt
        writer.extra_arrays["products"] = writer.products
    return open_shard(path, store)


@pytest.mark.parametrize("blocks", ["all", "layer"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_shard_in_npy_files_is_the_one_in_an_hdf5_file(tmp_path: Path, blocks: str, dtype: str) -> None:
    own, usual = (
        written(store, tmp_path / f"{n}" / NAME, blocks, dtype) for n, store in enumerate([OWN, HDF5])
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


def test_one_that_is_cut_short_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with pytest.raises(KeyboardInterrupt):
        written(OWN, path, stop=16)
    assert not path.exists()
    early = {tile: tile.stat().st_mtime_ns for tile in partial_of(path).glob("*-*.npy")}
    assert early
    np.testing.assert_array_equal(written(OWN, path).dense(), symmetric(19, "float64"))
    assert {name: (path / name.name).stat().st_mtime_ns for name in early} == early


def test_damage_is_found_in_any_storage_format(tmp_path: Path) -> None:
    path = tmp_path / NAME
    shard = written(OWN, path)
    file = path / "1-0.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFile, match=r"tile \(1, 0\) does not match its checksum"):
        shard.dense()
    attrs = path / "attrs.json"
    attrs.write_text(attrs.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(DamagedFile, match="do not match their checksum"):
        open_shard(path, OWN)
    with pytest.raises(PipelineError, match="no such folder"):
        open_shard(tmp_path / "none", OWN)
