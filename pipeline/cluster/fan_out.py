"""One function with many arguments, on the workers of a cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from dask.base import compute
from dask.delayed import delayed


class Workers(Protocol):
    def open(self, scratch: Path) -> AbstractContextManager[int]: ...


def fan_out(
    cluster: Workers,
    scratch: Path,
    function: Callable[..., None],
    arguments: Callable[[int], Sequence[tuple[Any, ...]]],
) -> None:
    """Call the function once with each of the arguments; a call whose worker dies is made again on another.

    arguments: given the number of workers. The function is told paths and settings, and leaves files: nothing comes
    back. What it raises is raised here.
    """
    with cluster.open(scratch) as num_workers:
        compute(*(delayed(function, pure=False)(*each) for each in arguments(num_workers)))


def worker_number() -> int:
    """The number that ends the name of the Dask worker in which this is called; 0 where it has none."""
    from distributed import get_worker

    found = re.search(r"\d+$", str(get_worker().name))
    return int(found[0]) if found else 0


def worker_share() -> float:
    """The share of its machine's memory that the Dask worker in which this is called may use."""
    from distributed import get_worker
    from distributed.system import MEMORY_LIMIT

    limit = get_worker().memory_manager.memory_limit
    return min(1.0, limit / MEMORY_LIMIT) if limit else 1.0
