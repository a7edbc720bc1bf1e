"""The mean that is kept alone is that of the shards; oracle: NumPy on the shards of a run that keeps all."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from support.command import SMALL, fail, succeed
from torch import nn

from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Threads
from pipeline.compute import running_mean
from pipeline.compute.stage import compute_step, matrices_of
from pipeline.config.schema import Blocks, Keep
from pipeline.criterion import CrossEntropy
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import MatrixSpec
from pipeline.matrix import Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.problem import Problem
from pipeline.shards.hdf5 import read_arrays
from pipeline.shards.shard import open_shard
from pipeline.spectrum import Exact
from pipeline.storage import Blosc2, Plain
from pipeline.strategy import HVP
from pipeline.system.run_folder import RunFolder

SPEC = MatrixSpec(Hessian(), HVP(), storage=Plain(7), keep=Keep.mean)


@pytest.fixture
def about():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(11, 3, dtype=torch.float64, generator=generator)
    samples = Batch(inputs, torch.randint(2, (11,), generator=generator))
    problem = Problem(model, CrossEntropy(), samples, None, 4)
    return problem, problem.batches(None, seed=0)  # 4, 4 and 3


def all_kept(path, about, spec=SPEC):
    folder = RunFolder(path)
    list(compute_step(folder, 5, *about, dataclasses.replace(spec, keep=Keep.all)))
    return [open_shard(each) for each in folder.shard_paths(5)]


def pooled(shards, values):
    numbers = [shard.attrs["num_samples"] for shard in shards]
    if shards[0].attrs["reduction"] == "sum":
        return sum(values)
    return sum(n * value for n, value in zip(numbers, values, strict=True)) / sum(numbers)


def compute_mean(folder, *about):
    return running_mean.keep_mean(folder, 5, matrices_of(folder, *about))


def names(folder):
    return sorted(path.name for path in folder.mean(5).parent.iterdir())


@pytest.mark.parametrize(
    ("options", "reduction"),
    [({}, "mean"), ({"blocks": Blocks.layer}, "mean"), ({"storage": Blosc2(7)}, "mean"), ({}, "sum")],
    ids=["plain", "layer", "blosc2", "sum"],
)
def test_it_is_the_weighted_mean_of_the_shards_and_they_are_gone(tmp_path, about, options, reduction):
    problem, batches = about
    about = dataclasses.replace(problem, criterion=CrossEntropy(reduction=reduction)), batches
    spec = dataclasses.replace(SPEC, **options)
    shards = all_kept(tmp_path / "all", about, spec)
    folder = RunFolder(tmp_path / "mean")
    attrs = list(compute_mean(folder, 5, *about, spec))
    assert names(folder) == ["mean.h5"]
    assert [each["batch_index"] for each in attrs] == [0, 1, 2]
    mean = open_shard(folder.mean(5))
    expected = pooled(shards, [shard.dense() for shard in shards])
    np.testing.assert_allclose(mean.dense(), expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(
        mean.gradient, pooled(shards, [shard.gradient for shard in shards]), atol=1e-15
    )
    assert mean.attrs["loss"] == pytest.approx(pooled(shards, [shard.attrs["loss"] for shard in shards]))
    assert mean.attrs["gradient_norm"] == pytest.approx(np.linalg.norm(mean.gradient))
    assert (mean.attrs["num_samples"], mean.attrs["num_batches"]) == (11, 3)
    assert mean.attrs["probe_error"] == max(shard.attrs["probe_error"] for shard in shards)
    losses = read_arrays(mean.path, ["batch_loss"])["batch_loss"]
    np.testing.assert_array_equal(losses, [shard.attrs["loss"] for shard in shards])


def test_float32_is_added_in_float64(tmp_path, about):
    spec = dataclasses.replace(SPEC, storage=Plain(7, "float32"))
    shards = all_kept(tmp_path / "all", about, spec)
    list(compute_mean(RunFolder(tmp_path / "mean"), 5, *about, spec))
    expected = pooled(shards, [shard.dense().astype(np.float64) for shard in shards])
    found = open_shard(RunFolder(tmp_path / "mean").mean(5)).dense()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1.5 * 2**-24 * np.abs(expected).max()


def test_all_spectra_are_those_of_the_mean_of_all(tmp_path, about):
    all_kept(tmp_path / "all", about)
    list(compute_mean(RunFolder(tmp_path / "mean"), 5, *about, SPEC))
    found = []
    for name in ("all", "mean"):
        folder = RunFolder(tmp_path / name)
        [file] = aggregate(folder, Exact(num_top=4), Threads(2))
        found.append(file)
    file, expected = found[1], found[0]
    pairs = (
        (file.mean.eigenvalues, expected.mean.eigenvalues),
        (file.layers.trace, expected.layers.trace),
        (file.layers.block_norms, expected.layers.block_norms),
        (file.mean.gradient, expected.mean.gradient),
    )
    for actual, desired in pairs:
        np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-14)
    for name in (
        "num_batches",
        "num_samples",
        "loss",
        "trace",
        "lambda_max",
        "frobenius_norm",
        "gradient_norm",
    ):
        assert file.numbers[name] == pytest.approx(expected.numbers[name]), name
    assert open_shard(RunFolder(tmp_path / "mean").mean(5)).attrs["keep"] == "mean"  # still there
    with pytest.raises(
        PipelineError, match=r"is the mean of 3 batches, whose shards are gone: num_batches=2 cannot"
    ):
        list(aggregate(RunFolder(tmp_path / "mean"), Exact(num_top=4), Threads(2), num_batches=2))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_cut_short_before_or_after_a_batch_is_added_it_ends_in_the_same_bits(
    tmp_path, about, monkeypatch, batch, moment
):
    expected = RunFolder(tmp_path / "expected")
    list(compute_mean(expected, 5, *about, SPEC))
    real, calls = running_mean._added, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == batch + 1:
            if moment == "after":
                real(*args)
            raise KeyboardInterrupt
        return real(*args)

    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(running_mean, "_added", stopped)
    with pytest.raises(KeyboardInterrupt):
        list(compute_mean(folder, 5, *about, SPEC))
    monkeypatch.undo()
    assert folder.transient_shard(5, batch).exists()
    made, real_write = [], running_mean.BatchMatrix.write
    monkeypatch.setattr(
        running_mean.BatchMatrix, "write", lambda self: made.append(self.path.name) or real_write(self)
    )
    attrs = list(compute_mean(folder, 5, *about, SPEC))
    assert made == [
        folder.transient_shard(5, index).name for index in range(batch + 1, 3)
    ]  # none is computed again
    assert [each["batch_index"] for each in attrs] == [0, 1, 2]
    assert names(folder) == ["mean.h5"]
    one, other = (open_shard(each.mean(5)) for each in (folder, expected))
    assert one.attrs == other.attrs
    np.testing.assert_array_equal(one.dense(), other.dense())


def test_it_goes_on_to_more_batches_and_not_back(tmp_path, about):
    problem, batches = about
    shards = all_kept(tmp_path / "all", about)
    folder = RunFolder(tmp_path / "run")
    list(compute_mean(folder, 5, problem, batches[:2], SPEC))
    assert open_shard(folder.mean(5)).attrs["num_batches"] == 2
    list(compute_mean(folder, 5, *about, SPEC))
    expected = pooled(shards, [shard.dense() for shard in shards])
    np.testing.assert_allclose(open_shard(folder.mean(5)).dense(), expected, rtol=0, atol=1e-15)
    before = folder.mean(5).stat().st_mtime_ns
    assert len(list(compute_mean(folder, 5, *about, SPEC))) == 3
    assert folder.mean(5).stat().st_mtime_ns == before
    with pytest.raises(
        PipelineError, match=r"mean\.h5 is the mean of 3 batches, this run has 2: none can be taken out"
    ):
        list(compute_mean(folder, 5, problem, batches[:2], SPEC))
    other = dataclasses.replace(SPEC, settings={"seed": 1})
    with pytest.raises(PipelineError, match=r"mean\.h5 has config_hash=.*: one folder holds one config"):
        list(compute_mean(folder, 5, *about, other))


def test_shards_that_another_run_kept_are_taken_and_stay(tmp_path, about):
    shards = all_kept(tmp_path, about)
    folder = RunFolder(tmp_path)
    list(aggregate(folder, Exact(num_top=4), Threads(2)))  # leaves a mean that is not this one
    folder.shard(5, 1).unlink()
    list(compute_mean(folder, 5, *about, SPEC))
    assert names(folder) == ["batch-00000.h5", "batch-00002.h5", "mean.h5"]
    assert open_shard(folder.mean(5)).attrs["keep"] == "mean"
    assert [shard.path.exists() for shard in shards] == [True, False, True]


@pytest.mark.integration
@pytest.mark.slow
def test_the_whole_run(tmp_path):
    """By threads and by workers, which share batches and, in the last wave, rows of one."""
    options = (*SMALL, "storage.tile=3", "data.num_samples=50", "stages=[train,compute,aggregate]")
    reported = (*options, "stages=[train,compute,aggregate,report]")
    succeed(tmp_path / "all", *reported)
    succeed(tmp_path / "mean", *reported, "keep=mean")
    succeed(tmp_path / "workers", *options, "keep=mean", "cluster=local", "cluster.num_workers=2")
    summaries = []
    for name in ("all", "mean", "workers"):
        [step] = (tmp_path / name / "shards").iterdir()
        there = sorted(path.name for path in step.iterdir())
        assert there == (["mean.h5"] if name != "all" else [*there[:-1], "mean.h5"])
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text()))
    assert "added up and not kept" in (tmp_path / "mean" / "report.html").read_text()
    assert "added up and not kept" not in (tmp_path / "all" / "report.html").read_text()
    for key in ("lambda_max", "trace", "loss", "num_batches", "num_samples"):
        assert summaries[1][key] == pytest.approx(summaries[0][key], rel=1e-12), key
        assert summaries[2][key] == summaries[1][key], key
    line = fail(tmp_path / "mean", *options, "keep=mean", "num_batches=2")
    assert "none can be taken out again" in line
