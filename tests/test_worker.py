"""Shards that workers compute are those that one process computes, to the bit."""

import numpy as np
import pytest
from command import SMALL, succeed

from pipeline.folder import RunFolder
from pipeline.shards import open_shard

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


def test_workers_compute_the_same_shards(tmp_path, expected):
    path = tmp_path / "run"
    succeed(path, *SMALL, *STAGES, "cluster=local", "cluster.num_workers=2")
    assert_same(path, expected)
    assert not (path / ".dask").exists()
