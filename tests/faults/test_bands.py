"""Processes that share the rows of one matrix, and are killed: every worker, or the run with all of them."""

import os
import signal
import time

import numpy as np
import pytest
from faults.test_workers import COMPUTE, WORKERS, workers_of, writers_of
from support.command import start, succeed
from support.outcome import complete

from pipeline.shards.hdf5 import read_arrays
from pipeline.shards.shard import open_shard
from pipeline.system.run_folder import RunFolder

ONE = (*COMPUTE, "data.batch_size=null", "storage.tile=50")  # P = 2,003: 41 rows of tiles


def shard_of(folder):
    [path] = RunFolder(folder).shard_paths(20)
    return open_shard(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bands") / "alone"
    succeed(folder, *ONE)
    return shard_of(folder)


def assert_same(folder, alone):
    found = shard_of(folder)
    assert found.attrs["bands"].count("-of-4.h5") == 4
    np.testing.assert_array_equal(found.dense(), alone.dense())
    checksums = (read_arrays(shard.path, ["checksums"])["checksums"] for shard in (found, alone))
    np.testing.assert_array_equal(*checksums)
    left = sorted(path.name for path in found.path.with_suffix(".bands").iterdir())
    assert left == [f"{number}-of-4.h5" for number in range(1, 5)]


@pytest.mark.parametrize("num_kills", [1, 2])
def test_a_worker_that_is_killed_in_its_band_is_replaced(tmp_path, alone, num_kills):
    folder, killed = tmp_path / "run", set()
    process = start(folder, *ONE, *WORKERS)
    while process.poll() is None and len(killed) < num_kills:
        for worker in writers_of(process)[:1]:
            if worker.pid not in killed:
                worker.kill()
                killed.add(worker.pid)
        time.sleep(0.01)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert len(killed) == num_kills
    assert "Traceback" not in output
    assert_same(folder, alone)


def test_a_run_that_is_killed_with_its_workers_goes_on_with_the_bands_that_are_whole(tmp_path, alone):
    folder = tmp_path / "run"
    process = start(folder, *ONE, *WORKERS)
    while process.poll() is None and not writers_of(process):
        time.sleep(0.01)
    workers = workers_of(process)
    os.kill(process.pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
    process.communicate()
    assert not RunFolder(folder).shard_paths(20)
    there = complete(folder)
    succeed(folder, *ONE)  # in one process: what was parted stays parted
    assert there.items() <= complete(folder).items()
    assert_same(folder, alone)
