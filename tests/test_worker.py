"""Shards that workers compute are those that one process computes, to the bit; their mistakes are told in one line."""

import signal
import subprocess
import time

import numpy as np
import psutil
import pytest
from command import SMALL, command, environment, fail, succeed

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


def test_a_mistake_is_told_in_one_line(tmp_path):
    line = fail(
        tmp_path / "run",
        *(option for option in SMALL if not option.startswith(("training.", "data.separation"))),
        "stages=[train,compute]",
        "cluster=local",
        "cluster.num_workers=1",
        "training=none",
        "data.separation=1e300",
    )
    assert "the loss of batch 0 at step 0 is " in line


def test_a_worker_that_is_killed_is_replaced(tmp_path, expected):
    path = tmp_path / "run"
    process = subprocess.Popen(
        command(path, *SMALL, *STAGES, "cluster=local", "cluster.num_workers=1"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(path.glob("shards/*/batch-*")):
        time.sleep(0.005)
    [worker] = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.parent().pid != process.pid or "resource_tracker" not in " ".join(child.cmdline())
    ]
    worker.send_signal(signal.SIGKILL)
    assert process.wait(180) == 0
    assert_same(path, expected)
