"""Where Dask tasks run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.cluster.address import Address
from pipeline.cluster.fan_out import fan_out, worker_number, worker_share
from pipeline.cluster.local import Local
from pipeline.cluster.pool import Pool, opened
from pipeline.cluster.slurm import Slurm
from pipeline.cluster.threads import Threads


class Cluster(Protocol):
    """Workers for Dask."""

    def open(self, scratch: Path) -> AbstractContextManager[int]:
        """While it is open, `dask.compute` runs on these workers; gives their number.

        scratch: a folder of the run for what workers put on disk.
        """
        ...
