"""blocks=layer: the diagonal blocks of the layers alone, from the strategy to the spectrum."""

import h5py
import numpy as np
import pytest
import torch
from support.shard_cases import ATTRS, LAYOUT, NUM_ROWS, NUM_SAMPLES, known, write_one
from torch import nn

from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Threads
from pipeline.compute.dense import hessian
from pipeline.compute.stage import compute_step
from pipeline.config.schema import Blocks
from pipeline.criterion import CrossEntropy
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import MatrixSpec
from pipeline.layout import Layout
from pipeline.matrix import GGN, Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.problem import Problem
from pipeline.shards import file_size, open_shard, write_shard
from pipeline.spectrum import Exact
from pipeline.strategy import STRATEGIES, tolerance_of
from pipeline.system.run_folder import RunFolder

LAYER = np.repeat([0, 1, 2], [24, 1, 12])  # first, scale, second
INSIDE = LAYER[:, None] == LAYER


def test_layers_of_a_layout():
    assert LAYOUT.layers() == {"first": slice(0, 24), "nothing": slice(24, 25), "second": slice(25, 37)}
    assert LAYOUT.names_in(slice(24, 25)) == ["nothing", "scale"]
    plain = Layout(("a", "b.x", "c.d.x", "c.d.y"), ((2,), (3,), (1,), (1,)))
    assert plain.layers() == {"a": slice(0, 2), "b": slice(2, 5), "c.d": slice(5, 7)}


@pytest.mark.parametrize("tile", [1, 5, 12, 16, 25, 64])
def test_a_shard_reads_as_the_matrix_with_zeros_between_layers(tmp_path, tile):
    problem = known()
    path = write_one(RunFolder(tmp_path), problem, 0, tile, blocks="layer", num_samples=16)
    expected = np.where(INSIDE, problem.matrices[0], 0)
    shard = open_shard(path)
    assert np.array_equal(shard.dense(), np.tril(expected) + np.tril(expected, -1).T)
    vectors = np.random.default_rng(0).normal(size=(NUM_ROWS, 2))
    assert np.allclose(shard.matvec(vectors), expected @ vectors, rtol=1e-13, atol=1e-13)
    with h5py.File(path) as file:
        seen = file["matrix"][:]
    lower = np.tri(NUM_ROWS, dtype=bool)
    assert np.array_equal(seen[lower & INSIDE], expected[lower & INSIDE])
    if tile == 1:
        assert np.isnan(seen[~(lower & INSIDE)]).all()  # nothing is stored there


def test_tiles_between_layers_take_no_room(tmp_path):
    layout = Layout(("one.weight", "two.weight"), ((3000,), (3000,)))
    sizes = {}
    for blocks in ("all", "layer"):
        path = tmp_path / f"{blocks}.h5"
        with write_shard(path, layout, "float32", {**ATTRS, "blocks": blocks}, np.zeros(6000)) as writer:
            for i in range(0, 6000, 1000):
                for j in range(0, i + 1, 1000):
                    if blocks == "all" or (i < 3000) == (j < 3000):
                        writer.add(slice(i, i + 1000), slice(j, j + 1000), np.ones((1000, 1000), "f4"))
        sizes[blocks] = path.stat().st_size
        assert sizes[blocks] <= file_size(layout, 4, blocks)
    assert sizes["layer"] < 0.65 * sizes["all"]  # 48 of 78 tiles
    assert open_shard(tmp_path / "layer.h5").dense().sum() == 2 * 3000**2


def write_a_part(path):
    with write_shard(path, LAYOUT, "float64", {**ATTRS, "blocks": "layer"}, np.zeros(37), 16) as writer:
        writer.add(slice(0, 24), slice(0, 24), np.ones((24, 24)))
        writer.add(slice(25, 37), slice(25, 37), np.ones((12, 12)))


def test_an_entry_of_a_block_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="never filled"):
        write_a_part(tmp_path / "shard.h5")
    assert not list(tmp_path.iterdir())


def test_the_spectrum_is_that_of_the_blocks(tmp_path):
    problem, folder = known(), RunFolder(tmp_path)
    for index, num_samples in enumerate(NUM_SAMPLES):
        write_one(folder, problem, index, 16, blocks="layer", num_samples=num_samples)
    [file] = aggregate(folder, Exact(), Threads())
    expected = np.where(INSIDE, problem.mean, 0)
    assert np.allclose(file.mean.eigenvalues, np.linalg.eigvalsh(expected), rtol=0, atol=1e-12)
    assert file.origin["blocks"] == "layer"
    assert file.numbers["frobenius_norm"] == pytest.approx(np.linalg.norm(expected))
    assert np.array_equal(open_shard(folder.mean(ATTRS["step"])).dense() == 0, ~INSIDE)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return Batch(
        torch.randn(11, 3, dtype=torch.float64, generator=generator),
        torch.randint(2, (11,), generator=generator),
    )


def compute(folder, model, batch, strategy, matrix):
    problem = Problem(model, CrossEntropy(), batch, None, None)
    return list(compute_step(folder, 5, problem, [batch], MatrixSpec(matrix, strategy, blocks=Blocks.layer)))


@pytest.mark.parametrize("matrix", [Hessian(), GGN()])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_computes_the_blocks_of_the_layers(tmp_path, model, batch, name, matrix):
    strategy = STRATEGIES[name]()
    [attrs] = compute(RunFolder(tmp_path), model, batch, strategy, matrix)
    whole = hessian(model, CrossEntropy(), *batch, strategy="triangular", matrix=matrix).numpy()
    inside = np.equal.outer(np.arange(26) < 16, np.arange(26) < 16)
    found = open_shard(RunFolder(tmp_path).shard(5, 0)).dense()
    allowed = 1e-14 + tolerance_of(strategy, torch.float64) * np.linalg.norm(whole)
    assert np.abs(found - np.where(inside, whole, 0)).max() <= allowed
    assert attrs["blocks"] == "layer"
    assert attrs["probe_error"] <= attrs["probe_tolerance"]


def test_a_wrong_block_is_refused(tmp_path, model, batch):
    class Wrong(STRATEGIES["hvp"]):
        def blocks(self, objective, params, batch, wanted):
            for block in super().blocks(objective, params, batch, wanted):
                block.values.mul_(1.01 if "2.weight" in params else 1)
                yield block

    with pytest.raises(PipelineError, match=r"^batch 0 at step 5: H v differs .* by 0\.01 of its size"):
        compute(RunFolder(tmp_path), model, batch, Wrong(), Hessian())
