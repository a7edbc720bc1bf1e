"""Oracle: the same numbers from whole matrices in NumPy."""

import tracemalloc

import numpy as np
import pytest
from support.shard_cases import ATTRS, LAYOUT, NUM_SAMPLES, known, write, write_one

from pipeline.aggregate.moments import TileSums, Weighting, pool_tiles
from pipeline.shards.shard import open_shard
from pipeline.system.run_folder import RunFolder

CASES = pytest.mark.parametrize(
    ("tile", "reduction"), [(8, "mean"), (8, "sum"), (37, "mean"), (512, "sum"), (1, "mean"), (36, "sum")]
)


def pooled(tmp_path, problem, tile, at_once=16):
    """The mean as one matrix, with NaN where no tile was given, and the sums; three tiles at a time."""
    folder = write(RunFolder(tmp_path), problem, tile)
    paths = folder.shard_paths(ATTRS["step"])
    shards = [open_shard(path) for path in paths]
    b, tiles = shards[0].tile, shards[0].tile_indices()
    mean, sums = np.full((37, 37), np.nan), TileSums.zero(len(paths), LAYOUT)
    for start in range(0, len(tiles), 3):
        weighting = Weighting.of(NUM_SAMPLES, problem.reduction)
        means, part = pool_tiles(shards, weighting, tiles[start : start + 3], at_once)
        sums.add(part)
        for (i, j), values in means:
            mean[i * b : i * b + len(values), j * b : j * b + values.shape[1]] = values
    lower = np.tri(37, dtype=bool)
    assert np.isfinite(mean[lower]).all()
    return np.where(lower, mean, mean.T), sums


@CASES
def test_the_mean_is_weighted_by_samples_and_a_sum_is_a_sum(tmp_path, tile, reduction):
    problem = known(reduction)
    mean, _ = pooled(tmp_path, problem, tile)
    np.testing.assert_allclose(mean, problem.mean, rtol=0, atol=1e-13 * np.abs(problem.mean).max())


@CASES
def test_sums_over_tiles_are_those_of_whole_matrices(tmp_path, tile, reduction):
    problem = known(reduction, dead=(2, 22, 36))
    _, sums = pooled(tmp_path, problem, tile)
    close = {"rtol": 1e-12}
    np.testing.assert_allclose(sums.squares, (problem.matrices**2).sum((1, 2)), **close)
    np.testing.assert_allclose(
        sums.deviations, ((problem.estimates - problem.mean) ** 2).sum((1, 2)), **close
    )
    np.testing.assert_allclose(sums.traces, np.trace(problem.matrices, axis1=1, axis2=2), **close)
    np.testing.assert_array_equal(np.flatnonzero(~sums.live), [2, 22, 36])
    ends = [0, 21, 24, 24, 25, 37]
    for i in range(5):
        for j in range(5):
            block = problem.mean[ends[i] : ends[i + 1], ends[j] : ends[j + 1]]
            np.testing.assert_allclose(sums.block_squares[i, j], (block**2).sum(), **close)
    traces = [np.diagonal(problem.mean)[ends[i] : ends[i + 1]].sum() for i in range(5)]
    np.testing.assert_allclose(sums.layer_traces, traces, **close)


@CASES
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_second_look_finds_the_same(tmp_path, tile, reduction, at_once):
    """Shards whose tiles do not all fit into memory side by side."""
    problem = known(reduction, dead=(2,))
    (mean, sums), (expected, whole) = (pooled(tmp_path, problem, tile, n) for n in (at_once, 16))
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-14 * np.abs(expected).max())
    np.testing.assert_allclose(sums.deviations, whole.deviations, rtol=1e-13)
    np.testing.assert_allclose(sums.squares, whole.squares, rtol=1e-13)
    np.testing.assert_allclose(sums.block_squares, whole.block_squares, rtol=1e-13)


@pytest.mark.parametrize("at_once", [1, 16])
def test_distances_of_batches_that_are_nearly_alike(tmp_path, at_once):
    """Where ‖H_b‖² - 2⟨H_b, H⟩ + ‖H‖² would be rounding alone."""
    problem = known()
    noise = 1e-9 * (problem.matrices - problem.mean)
    problem.matrices[:] = problem.matrices[0] + noise
    _, sums = pooled(tmp_path, problem, 16, at_once)
    expected = ((problem.matrices - problem.mean) ** 2).sum((1, 2))
    assert (expected < 1e-15 * (problem.mean**2).sum()).all()
    np.testing.assert_allclose(sums.deviations, expected, rtol=1e-5)


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    path = write_one(RunFolder(tmp_path), many := known(), 0, tile=37)
    shard, peaks = open_shard(path), []
    for number in (4, 64):
        weighting = Weighting.of([5] * number, "mean")
        tracemalloc.start()
        pool_tiles([shard] * number, weighting, [(0, 0)], at_once=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert many.matrices[0].nbytes == 37 * 37 * 8
    assert peaks[1] < peaks[0] + 5 * many.matrices[0].nbytes  # not 60 of them


def test_a_mean_in_float32_is_the_rounded_mean_in_float64(tmp_path):
    problem = known(dtype="float32")
    mean, sums = pooled(tmp_path, problem, 16)
    exact = problem.pooled(problem.matrices.astype(np.float64))
    np.testing.assert_array_equal(mean, exact.astype(np.float32))
    np.testing.assert_allclose(sums.block_squares.sum(), (exact**2).sum(), rtol=1e-12)


def test_a_row_that_is_dead_in_one_batch_alone_is_alive_in_the_mean(tmp_path):
    problem = known()
    problem.matrices[1, 5] = problem.matrices[1, :, 5] = 0
    _, sums = pooled(tmp_path, problem, 8)
    assert sums.live.all()


def test_weights_of_a_ragged_last_batch():
    assert Weighting.of([6, 6, 3], "mean") == Weighting((0.4, 0.4, 0.2), (1.0, 1.0, 1.0))
    assert Weighting.of([6, 6, 3], "sum") == Weighting((0.4, 0.4, 0.2), (2.5, 2.5, 5.0))
    assert Weighting.of([6, 6, 3], "mean").mean([1.0, 2.0, 4.0]) == pytest.approx(2.0)
    assert Weighting.of([6, 6, 3], "sum").mean([1.0, 2.0, 4.0]) == pytest.approx(7.0)


def test_tiles_outside_the_layers_blocks_are_zero_whatever_was_read_before_them(tmp_path):
    """Tiles are read into memory that is used again and again; those that are not stored are in no file."""
    problem = known()
    layers = np.repeat([0, 1], [24, 13])
    problem.matrices[:, layers[:, None] != layers] = 0
    folder = write(RunFolder(tmp_path), problem, 8, blocks="layer")
    shards = [open_shard(path) for path in folder.shard_paths(ATTRS["step"])]
    assert shards[0].grid.is_outside((4, 0))
    wanted = [(0, 0), (4, 0), (4, 4)]
    means, sums = pool_tiles(shards, Weighting.of(NUM_SAMPLES, "mean"), wanted, following=[(1, 0), (4, 1)])
    assert not dict(means)[4, 0].any()
    inside = problem.matrices[:, :8, :8], problem.matrices[:, 32:, 32:]
    np.testing.assert_allclose(sums.squares, sum((part**2).sum((1, 2)) for part in inside), rtol=1e-12)
