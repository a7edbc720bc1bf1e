"""A matrix in bands is the matrix in one file: oracle is the shard that is written whole."""

import dataclasses

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compute.stage import compute_step, matrices_of
from pipeline.config.schema import Blocks, Verify
from pipeline.criterion import SquaredError
from pipeline.errors import DamagedFile, PipelineError
from pipeline.experiment.experiment import MatrixSpec
from pipeline.layout import Layout
from pipeline.matrix import Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.problem import Problem
from pipeline.shards.hdf5 import read_arrays
from pipeline.shards.row_bands import Band, assign_bands, number_there
from pipeline.shards.shard import open_shard
from pipeline.shards.tile_grid import TileGrid
from pipeline.shards.verify import verify
from pipeline.storage import Blosc2, Plain
from pipeline.strategy import HVP, Auto, KhatriRao
from pipeline.system.run_folder import RunFolder, partial_of

TILE = 9
NUM_ROWS = 71  # 8 rows of tiles
SPEC = MatrixSpec(Hessian(), HVP(), storage=Plain(TILE))
OWN = ("tile", "bands", "checksum", "seconds")


@pytest.fixture
def about():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 1), nn.Linear(1, 1)
    ).double()
    generator = torch.Generator().manual_seed(2)
    samples = Batch(*(torch.randn(11, n, dtype=torch.float64, generator=generator) for n in (5, 1)))
    assert sum(value.numel() for value in model.parameters()) == NUM_ROWS
    problem = Problem(model, SquaredError(), samples, None, 6)
    return problem, problem.batches(None, seed=0)


def whole(path, about, spec=SPEC):
    list(compute_step(RunFolder(path), 5, *about, spec))
    return RunFolder(path)


def in_bands(path, about, spec=SPEC, number=2, batch=0, only=None):
    """Bands as other processes leave them; nothing is joined."""
    folder = RunFolder(path)
    for index in range(number) if only is None else only:
        matrices_of(folder, 5, *about, spec)[batch].write_band(Band(index, number))
    return folder


def stamps(folder, pattern):
    return {path: path.stat().st_mtime_ns for path in folder.shards.glob(pattern)}


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("blocks", ["all", "layer"])
def test_every_row_of_tiles_is_in_one_band_and_bands_are_alike(number, blocks):
    grid = TileGrid.of(Layout(("a.weight", "b.weight"), ((40, 10), (600,))), 10, blocks)
    rows = [Band(index, number).tile_rows(grid) for index in range(number)]
    assert [i for band in rows for i in band] == list(range(100))
    counts = [grid.tile_mask(Band(index, number).tiles(grid)).sum() for index in range(number)]
    assert sum(counts) == grid.num_stored
    assert max(counts) - min(counts) <= 2 * 100


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": KhatriRao()},
        {"strategy": Auto(few_weights=1, very_few_weights=1, some_weights=1)},
        {"blocks": Blocks.layer},
        {"storage": Blosc2(TILE)},
        {"storage": Plain(TILE, "float32")},
        {"verify": Verify.off},
    ],
    ids=["hvp", "khatri_rao", "auto", "layer", "blosc2", "float32", "unverified"],
)
def test_bands_that_are_joined_are_the_matrix(tmp_path, about, options, number):
    spec = dataclasses.replace(SPEC, **options)
    expected = whole(tmp_path / "whole", about, spec)
    folder = in_bands(tmp_path / "bands", about, spec, number)
    assert folder.shard_paths(5) == []  # the bands are no shards
    list(compute_step(folder, 5, *about, spec))
    for one, other in zip(folder.shard_paths(5), expected.shard_paths(5), strict=True):
        found, shard = open_shard(one), open_shard(other)
        np.testing.assert_array_equal(found.dense(), shard.dense())
        np.testing.assert_array_equal(found.gradient, shard.gradient)
        attrs, wanted = ({k: v for k, v in each.attrs.items() if k not in OWN} for each in (found, shard))
        if "probe_error" in wanted:  # the products are added up band by band
            assert attrs.pop("probe_error") == pytest.approx(wanted.pop("probe_error"), rel=0.1, abs=1e-12)
            assert attrs.pop("probe_tolerance") == pytest.approx(wanted.pop("probe_tolerance"))
        assert attrs == wanted
        vectors = np.random.default_rng(0).normal(size=(NUM_ROWS, 3))
        np.testing.assert_array_equal(found.matvec(vectors), shard.matvec(vectors))
        checksums = (read_arrays(path, ["checksums"])["checksums"] for path in (one, other))
        np.testing.assert_array_equal(*checksums)
    assert "bands" in open_shard(folder.shard(5, 0)).attrs
    assert "bands" not in open_shard(folder.shard(5, 1)).attrs


def test_any_hdf5_tool_sees_one_matrix(tmp_path, about):
    folder = in_bands(tmp_path, about, number=3)
    list(compute_step(folder, 5, *about, SPEC))
    with h5py.File(folder.shard(5, 0)) as file:
        values, triangle = file["matrix"][:], file["matrix"].attrs["triangle"]
        assert file["matrix"].is_virtual
    assert triangle == "lower"
    shard = open_shard(folder.shard(5, 0))
    lower = np.tri(NUM_ROWS, dtype=bool)
    np.testing.assert_array_equal(values[lower], shard.dense()[lower])
    assert np.isnan(values[~lower]).all()


def test_a_folder_with_bands_can_be_moved(tmp_path, about):
    folder = in_bands(tmp_path / "before", about)
    list(compute_step(folder, 5, *about, SPEC))
    expected = open_shard(folder.shard(5, 0)).dense()
    folder.path.rename(tmp_path / "after")
    path = RunFolder(tmp_path / "after").shard(5, 0)
    np.testing.assert_array_equal(open_shard(path).dense(), expected)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(np.tril(file["matrix"][:]), np.tril(expected))


def test_bands_that_are_missing_are_made_and_the_others_taken(tmp_path, about):
    folder = in_bands(tmp_path, about, number=3, only=[0, 2])
    there = stamps(folder, "*/*.bands/*.h5")
    assert number_there(folder.shard(5, 0)) == 3
    list(compute_step(folder, 5, *about, SPEC))
    after = stamps(folder, "*/*.bands/*.h5")
    assert len(there) == 2
    assert len(after) == 3
    assert there.items() <= after.items()


def test_a_band_that_is_cut_short_goes_on(tmp_path, about, caplog, monkeypatch):
    from pipeline.shards import tile_writer

    monkeypatch.setattr(tile_writer, "RECORD_BYTES", 1)
    expected = whole(tmp_path / "whole", about)
    real, made = HVP.blocks, []

    def stopped(self, *args):
        for block in real(self, *args):
            made.append(block)
            if len(made) == 4:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(HVP, "blocks", stopped)
    spec = dataclasses.replace(SPEC, strategy=HVP(5))
    with pytest.raises(KeyboardInterrupt):
        in_bands(tmp_path / "bands", about, spec)
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "bands")
    assert number_there(folder.shard(5, 0)) == 2
    with caplog.at_level("INFO"):
        list(compute_step(folder, 5, *about, spec))
    assert "1-of-2.h5: " in caplog.text
    np.testing.assert_allclose(
        open_shard(folder.shard(5, 0)).dense(), open_shard(expected.shard(5, 0)).dense(), rtol=0, atol=1e-14
    )


def test_a_damaged_band_is_found_set_aside_and_made_again_alone(tmp_path, about):
    folder = in_bands(tmp_path, about)
    list(compute_step(folder, 5, *about, SPEC))
    path = folder.shard(5, 0)
    expected, there = open_shard(path).dense(), stamps(folder, "*/*.bands/*.h5")
    band = Band(1, 2).path(path)
    with h5py.File(band) as file:
        place = file["matrix"].id.get_chunk_info(file["matrix"].id.get_num_chunks() - 1).byte_offset
    content = bytearray(band.read_bytes())
    content[place + 100] ^= 16
    band.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"2-of-2\.h5 is damaged \(tile"):
        open_shard(path).dense()
    [damage] = verify(tmp_path)
    assert damage.path == band
    assert not band.exists()
    with pytest.raises(DamagedFile, match=r"batch-00000\.h5 is damaged \(its band batch-00000\.bands/2-of-2"):
        open_shard(path)
    list(compute_step(folder, 5, *about, SPEC))
    np.testing.assert_array_equal(open_shard(path).dense(), expected)
    after = stamps(folder, "*/*.bands/*.h5")
    assert after[Band(0, 2).path(path)] == there[Band(0, 2).path(path)]
    assert verify(tmp_path) == []


@pytest.mark.parametrize("options", [{"settings": {"seed": 1}}, {"storage": Plain(8)}])
def test_a_band_of_another_config_is_refused(tmp_path, about, options):
    folder = in_bands(tmp_path, about)
    with pytest.raises(
        PipelineError, match=r"1-of-2\.h5 has (config_hash|tile)=.*: one folder holds one config"
    ):
        list(compute_step(folder, 5, *about, dataclasses.replace(SPEC, **options)))


def test_bands_of_a_matrix_that_fails_its_certificate_are_refused(tmp_path, about):
    class Wrong(HVP):
        def blocks(self, *args):
            for block in super().blocks(*args):
                yield dataclasses.replace(block, values=block.values * 1.01)

    spec = dataclasses.replace(SPEC, strategy=Wrong())
    folder = in_bands(tmp_path, about, spec)
    with pytest.raises(PipelineError, match=r"^batch 0 at step 5: H v differs"):
        list(compute_step(folder, 5, *about, spec))
    assert not folder.shard(5, 0).exists()
    assert number_there(folder.shard(5, 0)) is None


def test_every_worker_is_dealt_work(tmp_path):
    grid = TileGrid(1000, 10)
    shards = [tmp_path / f"batch-0000{index}.h5" for index in range(3)]
    assert assign_bands(shards, grid, 1) == assign_bands(shards, grid, 3) == [(0, None), (1, None), (2, None)]
    assert assign_bands(shards[:1], grid, 4) == [(0, Band(index, 8)) for index in range(8)]
    assert [index for index, _ in assign_bands(shards, grid, 4)] == [0] * 4 + [1] * 4 + [2] * 4
    assert assign_bands(shards[:1], TileGrid(1000, 512), 4) == [(0, None)]  # too small to be parted
    assert [band.number for _, band in assign_bands(shards[:1], TileGrid(1000, 100), 4)] == [2, 2]
    assert assign_bands([], grid, 4) == []


def test_what_was_begun_is_gone_on_with_as_it_was_begun(tmp_path, about):
    folder = in_bands(tmp_path, about, number=3, only=[1])
    grid = TileGrid(1000, 10)
    paths = [folder.shard(5, 0), folder.shard(5, 1)]
    assert assign_bands(paths, grid, 4)[:3] == [(0, Band(index, 3)) for index in range(3)]
    partial_of(paths[1]).touch()  # a shard that was begun whole
    assert assign_bands(paths, grid, 4)[3:] == [(1, None)]
