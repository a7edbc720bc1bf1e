"""What fits: the bytes that a run needs, said before anything is allocated."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from pipeline.errors import PipelineError

UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has, or what the container or job is allowed."""
    import psutil  # here, so that matrices can be computed where only torch is installed

    allowed = [int(psutil.virtual_memory().available)]
    for path in map(Path, CGROUP_LIMITS):
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # no such controller, or "max"
            continue
        allowed.append(limit - psutil.Process().memory_info().rss)
    return max(0, min(allowed))


def check_memory(num_parameters: int, needs: dict[str, int], available: int | None = None) -> None:
    """Refuse a stage whose matrices would not fit into memory.

    needs: bytes for each thing that is held, by the option that decides it, such as "strategy=func".

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    there = available_memory() if available is None else available
    for option, bytes_needed in needs.items():
        if bytes_needed > there:
            raise PipelineError(
                f"{option} with P = {num_parameters:,} weights needs {format_bytes(bytes_needed)} of memory, "
                f"{format_bytes(there)} are free: choose {_lighter(option)}, fewer weights (parameters=[...]), "
                "or dtype=float32."
            )


def check_disk(folder: Path, num_parameters: int, bytes_each: int, num_shards: int) -> None:
    """Refuse shards that would not fit on the disk.

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    needed = num_shards * bytes_each
    there = shutil.disk_usage(folder).free
    if needed > there:
        raise PipelineError(
            f"{num_shards} shards of P = {num_parameters:,} weights need {format_bytes(needed)} of disk, "
            f"{format_bytes(there)} are free in {folder}: lower num_batches, choose another disk with "
            "hydra.run.dir=FOLDER, or dtype=float32."
        )


def format_bytes(num_bytes: int) -> str:
    """Bytes in the unit that a person would use: 45.9 GB."""
    power = min(int(math.log10(max(num_bytes, 1))) // 3, len(UNITS) - 1)
    return f"{num_bytes / 1000**power:.3g} {UNITS[power]}"


def _lighter(option: str) -> str:
    group = option.partition("=")[0].partition(".")[0]
    return {"spectrum": "spectrum=topk", "cluster": "cluster.num_workers=1"}.get(group, "strategy=hvp")
