"""Dask workers that are killed in the middle of their work, and what is left of them when the run itself is killed."""

import contextlib
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
from support.command import SMALL, start, succeed
from support.outcome import complete, differing, names, results

LARGER = (
    *SMALL,
    "model.hidden_sizes=[40]",
    "data.dimension=16",
    "data.num_samples=120",
    "data.batch_size=16",
)
WORKERS = ("cluster=local", "cluster.num_workers=2")
AGGREGATE = (*LARGER, "stages=[aggregate]", *WORKERS)
COMPUTE = (
    *LARGER,
    "model.hidden_sizes=[100]",
    "stages=[train,compute]",
)  # P = 2,003: long enough to be seen at


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers") / "undisturbed"
    succeed(folder, *LARGER, "stages=[train,compute]")
    return folder


@pytest.fixture(scope="module")
def expected(undisturbed, tmp_path_factory):
    folder = copied(undisturbed, tmp_path_factory.mktemp("workers") / "expected")
    succeed(folder, *AGGREGATE)
    return results(folder)


def copied(source, target):
    subprocess.run(["cp", "-a", source, target], check=True)
    return target


def workers_of(process):
    """The processes of Dask's workers: the children of the one that forks them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [each for child in psutil.Process(process.pid).children() for each in child.children()]
    return []


def wait_for_workers(process, number):
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if len(found := workers_of(process)) >= number:
            return found
        time.sleep(0.01)
    raise AssertionError(f"no {number} workers came")


@pytest.mark.parametrize("attempt", range(2))
def test_a_worker_that_is_killed_is_replaced_and_its_work_done_again(
    undisturbed, expected, tmp_path, attempt
):
    folder = copied(undisturbed, tmp_path / "run")
    there, chance = complete(folder), random.Random(attempt)
    process = start(folder, *AGGREGATE)
    killed = 0
    for _ in range(1 + attempt % 2):
        worker = chance.choice(wait_for_workers(process, 2))
        time.sleep(chance.uniform(0, 2))
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
            killed += process.poll() is None
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert killed > 0
    assert "Traceback" not in output
    assert there.items() <= complete(folder).items()
    assert differing(results(folder), expected) == []


def writers_of(process):
    """The workers that have an unfinished file open."""
    found = []
    for worker in workers_of(process):
        with contextlib.suppress(psutil.Error, OSError):
            if any(file.path.endswith(".partial") for file in worker.open_files()):
                found.append(worker)
    return found


@pytest.mark.parametrize("num_kills", [1, 2])
def test_a_worker_that_is_killed_while_it_computes_a_shard_is_replaced(tmp_path, num_kills):
    succeed(tmp_path / "alone", *COMPUTE)
    folder, there = tmp_path / "run", {}
    process = start(folder, *COMPUTE, *WORKERS)
    killed = set()
    while process.poll() is None and len(killed) < num_kills:
        for worker in writers_of(process)[:1]:
            if worker.pid not in killed:
                worker.kill()
                killed.add(worker.pid)
                there |= complete(folder)
        time.sleep(0.01)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert len(killed) == num_kills
    assert "Traceback" not in output
    assert there.items() <= complete(folder).items()
    assert differing(results(folder), results(tmp_path / "alone")) == []
    assert names(folder) == names(tmp_path / "alone")


def test_workers_do_not_outlive_the_run(undisturbed, expected, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    process = start(folder, *AGGREGATE)
    workers = wait_for_workers(process, 2)
    time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    assert not alive
    succeed(folder, *AGGREGATE)
    assert differing(results(folder), expected) == []
    assert not (folder / ".dask").exists()
