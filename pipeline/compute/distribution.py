"""Shards that other processes compute: those that are missing, dealt so that every process has work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.shards import Band, TileGrid, assign_bands

Work = tuple[int, int, Band | None]  # a step, a batch, and a band of its matrix; None for all of it
Processes = Callable[[Callable[[int], list[Work]]], None]
"""Has done what a function of the number of processes says, each piece by one of them."""


@dataclass(frozen=True)
class RemoteShards:
    """Where shards of these tiles are computed, if not in this process: by `processes`, where there are any.

    place: the path of the shard of a step and a batch.
    """

    processes: Processes | None
    place: Callable[[int, int], Path]
    grid: TileGrid

    def compute(self, places: Sequence[tuple[int, int]], most: int | None = None) -> None:
        """Have those of these steps and batches computed that are not there; the first ones, `most` for a process."""
        missing = [each for each in places if not self.place(*each).exists()]

        def work(num_processes: int) -> list[Work]:
            taken = missing[: most and most * num_processes]
            calls = assign_bands([self.place(*each) for each in taken], self.grid, num_processes)
            return [(*taken[index], band) for index, band in calls]

        if self.processes is not None and missing:
            self.processes(work)

    def compute_next(self, step: int, batches: Iterable[int]) -> None:
        """Have the first of these batches computed, one for each process."""
        self.compute([(step, batch) for batch in batches], most=1)
