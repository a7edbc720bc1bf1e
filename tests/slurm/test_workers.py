"""Dask workers that are SLURM jobs: the same numbers, a worker that is killed is replaced, nothing listens outside."""

import os
import shutil
import subprocess
import time

import dask
import h5py
import numpy as np
import psutil
import pytest
from dask.delayed import delayed
from support.command import command, environment, succeed
from support.slurm_cases import DATA, NEEDS_SLURM, PATIENCE, slurm

from pipeline.cluster import Slurm
from pipeline.errors import PipelineError

pytestmark = NEEDS_SLURM
OPTIONS = (
    *DATA,
    "data.batch_size=4",
    "model.hidden_sizes=[128]",
    "training.num_steps=50",
    "model=mlp",
    "strategy=khatri_rao",
    "tracking=none",
)
WORKERS = ("cluster=slurm", "cluster.num_workers=2", "cluster.memory_gb=0.7")


def workers(state="RUNNING"):
    """Their SLURM jobs."""
    return set(slurm("squeue", "-h", "-n", "dask-worker", "-t", state, "-o", "%i").split())


def until(condition, process=None):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    return found


def arrays(folder):
    found = {}
    with h5py.File(folder / "spectra" / "step-000050.h5") as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def test_aggregation_finds_the_same_on_workers_of_which_one_is_killed(tmp_path):
    """Eight batches' matrices of 2,563 rows, decomposed."""
    succeed(tmp_path / "threads", *OPTIONS, "stages=[train,compute]")
    shutil.copytree(tmp_path / "threads", tmp_path / "workers")
    succeed(tmp_path / "threads", *OPTIONS, "stages=[aggregate]")
    process = subprocess.Popen(
        command(tmp_path / "workers", *OPTIONS[:-1], "tracking=none", *WORKERS, "stages=[aggregate]"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first = until(workers, process)
    until(
        lambda: (tmp_path / "workers" / "shards" / "step-000050" / "mean.h5").exists() or workers() - first,
        process,
    )
    slurm("scancel", min(first))
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    mine, its = arrays(tmp_path / "workers"), arrays(tmp_path / "threads")
    assert mine.keys() == its.keys()
    for name, values in its.items():
        np.testing.assert_array_equal(mine[name], values, err_msg=name)
    assert not (tmp_path / "workers" / ".dask").exists()
    until(lambda: not workers("PENDING,RUNNING"))


def test_a_worker_that_is_killed_is_replaced_and_its_work_done_again(tmp_path):
    def work(number):
        time.sleep(0.5)
        return number, os.environ["SLURM_JOB_ID"]

    with Slurm(num_workers=2, memory_gb=0.7).open(tmp_path / "scratch") as num_workers:
        assert num_workers == 2
        seen = set()
        for start in range(0, 60, 20):
            if start == 20:
                killed = until(lambda: workers() if len(workers()) == 2 else None)
                slurm("scancel", min(killed))
            done = dask.compute(*[delayed(work)(number, pure=False) for number in range(start, start + 20)])
            assert [number for number, _ in done] == list(range(start, start + 20))
            seen |= {job for _, job in done}
        replaced = until(lambda: workers() if len(workers() - {min(killed)}) == 2 else None)
        assert replaced - killed
        listening = {
            connection.laddr.ip
            for process in [psutil.Process(), *map(psutil.Process, _pids_of(seen | replaced))]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert listening == {"127.0.0.1"}
    until(lambda: not workers("PENDING,RUNNING"))


def _pids_of(jobs):
    """Processes of this machine that carry the id of one of the jobs."""
    found = []
    for process in psutil.process_iter():
        try:
            job = process.environ().get("SLURM_JOB_ID")
        except psutil.Error:
            continue
        if job in jobs:
            found.append(process.pid)
    assert found
    return found


def test_workers_that_slurm_refuses_are_told_before_anything_waits(tmp_path):
    with (
        pytest.raises(PipelineError, match=r"sbatch refuses the workers \(.*[Ii]nvalid partition"),
        Slurm(partition="nope").open(tmp_path / "scratch"),
    ):
        pass


def test_workers_that_cannot_start_are_told_with_the_place_of_what_they_print(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "distributed.py").write_text("raise SystemExit('no such worker')")
    scratch = tmp_path / "scratch"
    with (
        pytest.raises(PipelineError, match=rf"have ended \(\d+: FAILED.* print is in {scratch}\."),
        Slurm(num_workers=1, memory_gb=0.7).open(scratch),
    ):
        pass
    assert "no such worker" in next(scratch.glob("worker-*.out")).read_text()


def test_a_path_that_a_shell_would_split_is_refused(tmp_path):
    with (
        pytest.raises(PipelineError, match="choose a folder without spaces and quotes"),
        Slurm().open(tmp_path / "my run" / ".dask"),
    ):
        pass
