"""Shards that workers compute are those that one process computes, to the bit."""

from types import SimpleNamespace

import distributed
import numpy as np
import pytest
import torch
from support.command import SMALL, succeed

import pipeline.experiment
from pipeline.compute import worker
from pipeline.device import Auto, Cuda
from pipeline.shards.shard import open_shard
from pipeline.system.run_folder import RunFolder

STAGES = ("stages=[train,compute]", "checkpoint_steps=[0]")


def shards(path):
    folder = RunFolder(path)
    return {
        (step, number): open_shard(shard)
        for step in folder.shard_steps()
        for number, shard in enumerate(folder.shard_paths(step))
    }


def assert_same(path, expected):
    found, wanted = shards(path), shards(expected)
    assert found.keys() == wanted.keys()
    assert len(found) == 6  # three batches at two steps
    for key, shard in found.items():
        assert shard.attrs == wanted[key].attrs
        np.testing.assert_array_equal(shard.dense(), wanted[key].dense())
        np.testing.assert_array_equal(shard.gradient, wanted[key].gradient)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "process"
    succeed(path, *SMALL, *STAGES)
    return path


@pytest.mark.integration
def test_workers_compute_the_same_shards(tmp_path, expected):
    path = tmp_path / "run"
    succeed(path, *SMALL, *STAGES, "cluster=local", "cluster.num_workers=2")
    assert_same(path, expected)
    assert not (path / ".dask").exists()


@pytest.mark.integration
def test_workers_share_one_matrix(tmp_path):
    """Fewer matrices than workers: each writes a band of its rows, and the run joins them."""
    one = (*SMALL, "stages=[train,compute]", "data.batch_size=null", "storage.tile=3")
    succeed(tmp_path / "alone", *one)
    succeed(tmp_path / "together", *one, "cluster=local", "cluster.num_workers=3")
    [(key, expected)] = shards(tmp_path / "alone").items()
    found = shards(tmp_path / "together")[key]
    names = sorted(path.name for path in found.path.with_suffix(".bands").iterdir())
    assert names == ["1-of-3.h5", "2-of-3.h5", "3-of-3.h5"]
    np.testing.assert_array_equal(found.dense(), expected.dense())
    assert found.attrs["probe_error"] < found.attrs["probe_tolerance"]
    before = {path: path.stat().st_mtime_ns for path in found.path.parent.rglob("*.h5")}
    done = succeed(tmp_path / "together", *one, "cluster=local", "stages=[train,compute,aggregate,report]")
    assert "Hessian spectrum" in "\n".join(done)
    assert not (tmp_path / "together" / ".dask").exists()
    after = {path: path.stat().st_mtime_ns for path in found.path.parent.rglob("*.h5")}
    assert before == after


@pytest.mark.parametrize(
    ("name", "number"), [(0, 0), (5, 5), ("SLURMCluster-3", 3), ("tcp://127.0.0.1:x", 0)]
)
def test_a_worker_knows_its_number(monkeypatch, name, number):
    asked = []
    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name=name))
    monkeypatch.setattr(
        pipeline.experiment, "build_experiment", lambda config, worker: asked.append((config.seed, worker))
    )
    worker.experiment_of.__wrapped__("seed: 3")
    assert asked == [(3, number)]


@pytest.mark.parametrize(
    ("worker", "number", "index"), [(0, 4, 0), (5, 4, 1), (3, 4, 3), (5, 1, None), (5, 0, None)]
)
def test_workers_take_the_gpus_of_a_machine_in_turn(monkeypatch, worker, number, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    chosen = Auto(tf32=True).of_worker(worker)
    assert chosen == (Auto(tf32=True) if index is None else Cuda(index, tf32=True))
