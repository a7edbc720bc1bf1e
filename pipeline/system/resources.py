"""What fits: the bytes that a run needs, said before anything is allocated."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import PipelineError

FEWER = "fewer weights (parameters=[...])"
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has, or what the container or job is allowed."""
    import psutil  # here, so that matrices can be computed where only torch is installed

    allowed = [int(psutil.virtual_memory().available)]
    for path in map(Path, CGROUP_LIMITS):
        try:
            limit = int(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
        allowed.append(limit - psutil.Process().memory_info().rss)
    return max(0, min(allowed))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def check_memory(
    num_parameters: int,
    needs: Mapping[str, int],
    available: int | None = None,
    ways_out: Callable[[str, int, int], Sequence[str]] | None = None,
) -> None:
    """Refuse a stage whose matrices would not fit into memory.

    needs: bytes for each thing that is held, by the option that decides it, such as "strategy=func".
    ways_out: what to choose in place of an option, by the bytes that it needs and those that are there.

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    there = available_memory() if available is None else available
    for option, bytes_needed in needs.items():
        if bytes_needed > there:
            ways = ways_out(option, bytes_needed, there) if ways_out else _lighter(option)
            raise PipelineError(
                f"{option} with P = {num_parameters:,} weights needs {format_bytes(bytes_needed)} of memory, "
                f"{format_bytes(there)} are free: {choices(ways)}."
            )


def check_disk(
    folder: Path,
    num_parameters: int,
    bytes_each: int,
    num_shards: int,
    ways_out: Callable[[int], Sequence[str]],
) -> None:
    """Refuse shards that would not fit on the disk.

    ways_out: what to choose, by the bytes that are there.

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    needed = num_shards * bytes_each
    there = shutil.disk_usage(folder).free
    if needed > there:
        raise PipelineError(
            f"{num_shards} shards of P = {num_parameters:,} weights need {format_bytes(needed)} of disk, "
            f"{format_bytes(there)} are free in {folder}: {choices(ways_out(there))}."
        )


def choices(ways: Sequence[str]) -> str:
    """What a person may choose, in words: choose this, that, or the third."""
    if not ways:
        return "take a machine that has more"
    *others, last = ways
    return f"choose {', '.join(others)}, or {last}" if others else f"choose {last}"


def format_bytes(num_bytes: int) -> str:
    """Bytes in the unit that a person would use: 45.9 GB."""
    power = min(int(math.log10(max(num_bytes, 1))) // 3, len(UNITS) - 1)
    return f"{num_bytes / 1000**power:.3g} {UNITS[power]}"


def format_seconds(seconds: float) -> str:
    """Seconds in the unit that a person would use: 15 min."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _lighter(option: str) -> list[str]:
    lighter = {"spectrum=exact": "spectrum=slq", "cluster.num_workers": "cluster.num_workers=1"}
    return [lighter[option], FEWER] if option in lighter else [FEWER]
