"""Where aggregation runs changes nothing of what it finds, and leaves nothing behind."""

import os
import sys
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from dask.delayed import delayed
from support.shard_cases import known, write
from threadpoolctl import threadpool_info

from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Local, Threads
from pipeline.errors import PipelineError
from pipeline.spectrum import Exact
from pipeline.system.run_folder import RunFolder

CLUSTERS = pytest.mark.parametrize("cluster", [Threads, Local])


def workers():
    """Processes under this one, but for multiprocessing's own two helpers, which live as long as this one."""
    children = psutil.Process().children(recursive=True)
    helpers = {child.pid for child in psutil.Process().children() if "-c" in child.cmdline()}
    return {child.pid for child in children} - helpers


@pytest.mark.slow
def test_threads_and_processes_find_the_same(tmp_path):
    found = []
    for number, cluster in enumerate((Threads(1), Threads(3), Local(2))):
        folder = write(RunFolder(tmp_path / str(number)), known(), tile=8)
        [file] = aggregate(folder, Exact(num_top=4), cluster)
        found.append((file.attrs, file.arrays))
    for attrs, arrays in found[1:]:
        assert attrs == found[0][0]
        assert arrays.keys() == found[0][1].keys()
        for name, values in arrays.items():
            np.testing.assert_array_equal(values, found[0][1][name], err_msg=name)


def test_processes_listen_on_this_machine_alone_and_leave_nothing_behind(tmp_path):
    before, scratch = workers(), tmp_path / ".dask"
    with Local(2).open(scratch) as num_workers:
        assert num_workers == 2
        assert scratch.is_dir()
        started = workers() - before
        pids = set(dask.compute(*[delayed(lambda _: os.getpid())(i) for i in range(16)]))
        assert os.getpid() not in pids
        assert pids <= started
        processes = [psutil.Process(), *map(psutil.Process, started)]
        listening = [
            connection.laddr.ip
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert len(listening) >= 3  # the scheduler and two workers
    assert set(listening) == {"127.0.0.1"}
    assert workers() == before
    assert not scratch.exists()


def test_processes_are_forks_of_one_that_has_imported_what_this_one_has(tmp_path):
    """So that the imports, seconds of a core, are made once; each has one thread for linear algebra all the same."""
    assert "pipeline.aggregate.stage" in sys.modules

    def look():
        threads = {each["num_threads"] for each in threadpool_info()}
        keeps = b"MALLOC_ARENA_MAX=1\0" in Path("/proc/self/environ").read_bytes()  # it began with that
        return os.getppid(), "pipeline.aggregate.stage" in sys.modules, threads, keeps

    with Local(2).open(tmp_path / ".dask"):
        found = dask.compute(*[delayed(lambda _: look())(i) for i in range(8)])
    assert len({parent for parent, *_ in found}) == 1
    assert all(imported and threads == {1} and keeps for _, imported, threads, keeps in found)
    assert found[0][0] != os.getpid()


def test_processes_go_when_the_work_fails(tmp_path):
    before, scratch = workers(), tmp_path / ".dask"
    with pytest.raises(ZeroDivisionError), Local(1).open(scratch):
        dask.compute(delayed(lambda: 1 / 0)())
    assert workers() == before
    assert not scratch.exists()


def test_threads_are_those_of_this_process(tmp_path):
    with Threads(3).open(tmp_path / ".dask") as num_workers:
        assert num_workers == 3
        assert dask.compute(delayed(os.getpid)()) == (os.getpid(),)
    assert list(tmp_path.iterdir()) == []


@CLUSTERS
def test_null_takes_the_cores_that_this_process_may_use(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5})
    with cluster().open(tmp_path / ".dask") as num_workers:
        assert num_workers == 2


@CLUSTERS
@pytest.mark.parametrize("num_workers", [0, -1, 1.5, "two", True])
def test_a_number_of_workers_that_is_none_is_refused(cluster, num_workers):
    with pytest.raises(
        PipelineError, match=r"^cluster\.num_workers=.*: give a whole number of at least 1, or null"
    ):
        cluster(num_workers)


def test_workers_that_do_not_start_are_started_again_and_then_told(tmp_path, monkeypatch):
    """A worker that is killed while it starts makes Dask give up on all of them."""
    import distributed

    begun = []

    def start(**options):
        begun.append(options["n_workers"])
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(distributed, "LocalCluster", start)
    with pytest.raises(
        PipelineError, match=r"Dask's workers do not start \(Nanny failed to start\.\): use cluster="
    ):
        Local(2).open(tmp_path / "scratch").__enter__()
    assert begun == [2, 2, 2]
    assert not (tmp_path / "scratch").exists()
