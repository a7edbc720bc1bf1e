"""Mean and standard deviation over the seeds of a sweep: jobs that differ in their seed alone are one group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SEED = "seed"


@dataclass(frozen=True)
class Statistics:
    """Of numbers that differ by the seed: how many, their mean, their standard deviation (n − 1; NaN for one)."""

    count: int
    mean: float
    deviation: float

    @staticmethod
    def of(values: Iterable[float]) -> Statistics:
        known = np.array([value for value in values if np.isfinite(value)], float)
        if not len(known):
            return Statistics(0, float("nan"), float("nan"))
        deviation = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
        return Statistics(len(known), float(known.mean()), deviation)


def groups_of(choices: Sequence[Mapping[str, str]]) -> dict[tuple[tuple[str, str], ...], list[int]]:
    """The places of the jobs that agree in all choices but the seed, by these choices, in the order of the jobs."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for place, each in enumerate(choices):
        key = tuple((name, value) for name, value in each.items() if name != SEED)
        groups.setdefault(key, []).append(place)
    return groups
