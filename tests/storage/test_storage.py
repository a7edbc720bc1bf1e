"""The forms of shards: the numbers that are read are those that were written, packed or rounded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.compute.stage import compute_step
from pipeline.criterion import SquaredError
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import MatrixSpec
from pipeline.layout import Layout
from pipeline.matrix import Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.problem import Problem
from pipeline.shards import open_shard, tile_writer, write_shard
from pipeline.storage import Blosc2, Plain, Storage
from pipeline.strategy import HVP
from pipeline.system.run_folder import RunFolder

Array = NDArray[Any]
NUM_ROWS, TILE = 45, 8
IDENTITY = {"step": 1}


def sparse(dtype: str) -> Array:
    matrix = np.random.default_rng(0).normal(size=(NUM_ROWS, NUM_ROWS))
    matrix[:, 10:30] = 0
    return (matrix + matrix.T).astype(dtype)


def write(
    path: Path, matrix: Array, stop: int = NUM_ROWS, stored: str | None = None, packed: str | None = None
) -> Any:
    layout, computed = Layout(("w",), ((NUM_ROWS,),)), str(matrix.dtype)
    arguments = stored or computed, {}, np.zeros(NUM_ROWS), TILE, None, IDENTITY, None, computed, packed
    with write_shard(path, layout, *arguments) as writer:
        there = writer.num_there
        for i in range(stop):
            writer.add(slice(i, i + 1), slice(0, NUM_ROWS), matrix[i : i + 1])
        if stop < NUM_ROWS:
            raise KeyboardInterrupt
        return there, writer.rounding


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_tiles_are_read_as_they_were_and_every_flipped_bit_is_found(
    tmp_path: Path, dtype: str
) -> None:
    path, matrix = tmp_path / "a.h5", sparse(dtype)
    with pytest.raises(KeyboardInterrupt):
        write(path, matrix, 30, packed="blosc2")
    there, _ = write(path, matrix, packed="blosc2")
    assert there == 6
    shard = open_shard(path)
    assert np.array_equal(shard.dense(), matrix)
    import hdf5plugin  # noqa: F401

    with h5py.File(path) as file:  # as any tool with the filter
        assert np.array_equal(np.tril(np.nan_to_num(file["matrix"][:])), np.tril(matrix))
        chunks = []
        file["matrix"].id.chunk_iter(chunks.append)
    content, chance = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        chunk = chunks[chance.integers(len(chunks))]
        altered = bytearray(content)
        altered[chunk.byte_offset + chance.integers(chunk.size)] ^= 1 << chance.integers(8)
        path.write_bytes(altered)
        with pytest.raises(PipelineError, match="does not match its checksum"):
            open_shard(path).dense()


def test_rounding_is_told_also_where_a_shard_was_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_writer, "RECORD_BYTES", 0)
    path, matrix = tmp_path / "a.h5", sparse("float64")
    with pytest.raises(KeyboardInterrupt):
        write(path, matrix, 44, stored="float32")
    there, rounding = write(path, matrix, stored="float32")
    assert there == 15
    moved = np.abs(matrix - matrix.astype(np.float32)).max()
    assert rounding == {"rounding_abs": moved, "rounding_rel": moved / np.abs(matrix).max()}
    assert open_shard(path).dtype == np.float32
    assert np.array_equal(open_shard(path).dense(), matrix.astype(np.float32))


@pytest.mark.parametrize("storage", [Plain(16, "float32"), Blosc2(16), Blosc2(7, "float32")])
def test_a_shard_that_is_computed_in_float64(tmp_path: Path, storage: Storage) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    batch = Batch(torch.randn(5, 6).double(), torch.randn(5, 4).double())
    problem = Problem(model, SquaredError(), batch, None, None)
    found = {}
    for kind in (Plain(), storage):
        folder = RunFolder(tmp_path / str(len(found)))
        [attrs] = compute_step(folder, 1, problem, [batch], MatrixSpec(Hessian(), HVP(), storage=kind))
        found[kind] = open_shard(folder.shard(1, 0)), attrs
    (plain, _), (other, attrs) = found.values()
    exact = storage.precision is None
    assert other.tile == storage.tile
    assert np.abs(other.dense() - plain.dense()).max() <= (0 if exact else 1e-6)
    assert ("rounding_abs" in attrs) is not exact
    assert attrs["probe_error"] <= attrs["probe_tolerance"]
    assert os.path.getsize(other.path) < os.path.getsize(plain.path) + 2**16


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"storage\.tile=0"):
        Plain(tile=0)
    with pytest.raises(PipelineError, match=r"storage\.precision='float16': choose one of float32, float64"):
        Blosc2(precision="float16")
