"""A real scheduler and real workers in processes of their own, as `dask scheduler` and `dask worker` start them."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from support.command import environment
from support.shard_cases import ATTRS, known, write

from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Address, Threads
from pipeline.errors import PipelineError
from pipeline.shards.hdf5 import read_array_file
from pipeline.spectrum import Exact
from pipeline.system.run_folder import RunFolder


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def started(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(100)


@pytest.fixture(scope="module")
def scheduler():
    port = free_port()
    with started("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard") as process:
        while True:
            assert process.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"tcp://127.0.0.1:{port}"


def worker(address, scratch):
    options = (
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
        "--host",
        "127.0.0.1",
        "--local-directory",
        str(scratch),
    )
    return started("worker", address, *options)


@pytest.mark.slow
def test_workers_of_a_running_scheduler_find_the_same_and_stay(scheduler, tmp_path):
    expected = write(RunFolder(tmp_path / "threads"), known(), tile=8)
    list(aggregate(expected, Exact(num_top=4), Threads(1)))
    with worker(scheduler, tmp_path) as one, worker(scheduler, tmp_path) as other:
        for number in range(2):  # the first run closes nothing that the second one needs
            folder = write(RunFolder(tmp_path / str(number)), known(), tile=8)
            list(aggregate(folder, Exact(num_top=4), Address(scheduler, patience=60)))
            found, wanted = (read_array_file(f.spectrum(ATTRS["step"])).arrays for f in (folder, expected))
            assert found.keys() == wanted.keys()
            for name, values in found.items():
                np.testing.assert_array_equal(values, wanted[name], err_msg=name)
        assert one.poll() is None
        assert other.poll() is None


def test_a_scheduler_that_does_not_answer_is_told(tmp_path):
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        pytest.raises(
            PipelineError, match=rf"^no Dask scheduler answers at {address} within 0\.5 s: start one"
        ),
        Address(address, patience=0.5).open(tmp_path),
    ):
        pass


def test_a_scheduler_without_workers_is_told(scheduler, tmp_path):
    """Those of the test above have left it."""
    with (
        pytest.raises(PipelineError, match=rf"^the Dask scheduler at {scheduler} has no workers: start some"),
        Address(scheduler, patience=2).open(tmp_path),
    ):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:8786", "tcp://127.0.0.1", "http://host:80", 8786, ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(PipelineError, match=r"^cluster\.address="):
        Address(address)


@pytest.mark.parametrize("patience", [0, -1, "long", None])
def test_patience_is_checked(patience):
    with pytest.raises(PipelineError, match=r"^cluster\.patience="):
        Address(patience=patience)
