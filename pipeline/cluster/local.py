"""Worker processes on this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask

from pipeline.errors import PipelineError
from pipeline.validation import check_count

NUM_STARTS = 3
IMPORTED = (
    "pipeline.aggregate.stage",
    "pipeline.compute.worker",
    "pipeline.compute.stage",
    "pipeline.experiment.instantiate",
    "scipy.linalg",
    "torch._dynamo",
)
"""What takes workers long to import; none of it starts a thread or asks for a GPU."""
ALLOCATOR = {"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**28}
"""The environment of a worker, for glibc's malloc, which so keeps up to 256 MB of what is freed: Dask has it return all
but 64 kB, and a product without matrices then spends a third of its time on pages that are new again."""


@dataclass(frozen=True)
class Local:
    """A Dask LocalCluster: one single-threaded process a worker, so HDF5 reads go in parallel. Starts in about 1 s.

    Workers are forks of one process, so that imports are made once for all of them. They listen on 127.0.0.1 alone, and
    there is no dashboard. num_workers: null takes the cores that this process may use.
    """

    num_workers: int | None = None

    def __post_init__(self) -> None:
        check_count("cluster.num_workers", self.num_workers, or_null="one a core")

    @contextmanager
    def open(self, scratch: Path) -> Iterator[int]:
        from distributed import Client

        logging.getLogger("distributed").setLevel(logging.ERROR)  # workers come and go without saying so
        num_workers = self.num_workers or len(os.sched_getaffinity(0))
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            with _forked(), _started(num_workers, scratch) as cluster, Client(cluster):
                yield num_workers
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _forked() -> Iterator[None]:
    """Within it Dask's workers are forks of a process that has imported what this process has of `IMPORTED`."""
    from distributed.utils import get_mp_context

    settings = {
        "distributed.worker.multiprocessing-method": "forkserver",
        **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ALLOCATOR.items()},
    }
    with dask.config.set(settings):
        get_mp_context()  # or Dask would put a list of its own in place of this one
        names = [name for name in IMPORTED if name in sys.modules]
        multiprocessing.get_context("forkserver").set_forkserver_preload(["distributed", *names])
        yield


def _started(num_workers: int, scratch: Path) -> Any:
    """A cluster; a worker that is killed while it starts takes all of them along, so they are started again."""
    from distributed import LocalCluster

    for left in reversed(range(NUM_STARTS)):
        try:
            return LocalCluster(
                n_workers=num_workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={
                    "dashboard_address": "127.0.0.1:0"
                },  # of a page for its health; not port 8787
                local_directory=str(scratch),
                silence_logs=logging.CRITICAL,  # what a task raises is raised here; the worker need not print it
            )
        except RuntimeError as error:
            if left == 0:
                raise PipelineError(
                    f"Dask's workers do not start ({error}): use cluster=threads, or lower cluster.num_workers."
                ) from error
