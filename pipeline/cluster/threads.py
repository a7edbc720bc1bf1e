"""Threads of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask
from dask.threaded import get

from pipeline.validation import check_count


@dataclass(frozen=True)
class Threads:
    """Dask's threaded scheduler: nothing to start, nothing copied. HDF5 reads take turns, linear algebra does not.

    num_workers: null takes the cores that this process may use.
    """

    num_workers: int | None = None

    def __post_init__(self) -> None:
        check_count("cluster.num_workers", self.num_workers, or_null="one a core")

    @contextmanager
    def open(self, scratch: Path) -> Iterator[int]:
        num_workers = self.num_workers or len(os.sched_getaffinity(0))
        # the function: by the name "threads", Dask would first import all of distributed
        with dask.config.set(scheduler=get, num_workers=num_workers):
            yield num_workers
