"""Workers that are asked again and again, and keep what they have built for their part of the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask

from pipeline.cluster.fan_out import Workers
from pipeline.errors import PipelineError

ANY_SIZE = {"distributed.admin.large-graph-warning-threshold": "1 PB"}  # of arguments
HERE = "//127.0.0.1:"


@dataclass
class Pool:
    """The workers of a cluster that is open.

    num_workers: at its beginning. places: the worker that each call went to the last time.
    """

    num_workers: int
    client: Any
    places: list[str] = field(default_factory=list)

    def map(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """Results in the order of the arguments. The n-th call goes to the worker that the n-th went to before.

        A call whose worker dies is made again on another: the function is to depend on its arguments alone.

        Raises:
            PipelineError: workers die again and again; and what the function raises.
        """
        from distributed import KilledWorker

        self.places = settled(self.places, len(arguments), list(self.client.nthreads()))
        with dask.config.set(ANY_SIZE):
            futures = [
                self.client.submit(
                    function, *each, pure=False, workers=place or None, allow_other_workers=bool(place)
                )
                for each, place in zip(arguments, self.places, strict=True)
            ]
        is_near = all(HERE in place for place in self.places)
        try:  # from afar by way of the scheduler, which reaches them
            return list(self.client.gather(futures, direct=is_near))
        except KilledWorker as error:
            raise PipelineError(
                f"{error.allowed_failures + 1} workers died at the same work, of too little memory, maybe: lower "
                "cluster.num_workers or data.batch_size."
            ) from error


@contextmanager
def opened(cluster: Workers, scratch: Path) -> Iterator[Pool]:
    """The workers of a cluster of processes. scratch: a folder of the run for what they put on disk."""
    from distributed import default_client

    with cluster.open(scratch) as num_workers:
        yield Pool(num_workers, default_client())


def settled(places: Sequence[str], number: int, workers: Sequence[str]) -> list[str]:
    """A worker for each of so many calls, each where it was if that lives, and none with more than its share.

    Empty where there are no workers: any that comes will do.
    """
    if not workers:
        return [""] * number
    most, loads = -(-number // len(workers)), Counter(dict.fromkeys(workers, 0))
    found = [*places[:number], *[""] * (number - len(places))]
    for index, place in enumerate(found):
        if place not in loads or loads[place] == most:
            found[index] = ""
        else:
            loads[place] += 1
    for index, place in enumerate(found):
        if not place:
            found[index] = min(loads, key=lambda worker: loads[worker])
            loads[found[index]] += 1
    return found
