"""Tasks of Dask, carried out a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dask.base import compute as dask_compute

from pipeline.system import progress


def results_in_order(tasks: Sequence[Any], num_workers: int, description: str) -> Iterator[Any]:
    """Results in the order of the tasks, computed two a worker at a time, so that few of them lie in memory.

    While the results of some tasks are used, the next ones are computed.
    """
    wave = 2 * num_workers
    waves = [tasks[i : i + wave] for i in range(0, len(tasks), wave)]

    def computed() -> Iterator[Any]:
        with ThreadPoolExecutor(1) as ahead:
            futures = deque(ahead.submit(dask_compute, *wave) for wave in waves[:1])
            for following in [*waves[1:], None][: len(waves)]:
                results = futures.popleft().result()
                if following is not None:
                    futures.append(ahead.submit(dask_compute, *following))
                yield from results

    return progress(computed(), description, total=len(tasks))
