"""How fast matrices go to the disk and come back, beside what the disk and the processor could do; run it by hand.

    python scripts/benchmark_storage.py                 # experiment=large: 20 GB of disk, five minutes
    python scripts/benchmark_storage.py --hidden 30     # 1.2 GB

All rates of one run are measured in that run: a disk is not the same from hour to hour. The plain file comes first, and
gets what the disk takes faster than it can keep up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.compute.cost_estimate import gemm_rate
from pipeline.layout import Layout
from pipeline.shards import Shard, file_size, open_shard, write_shard
from pipeline.system.run_folder import RunFolder

MB = 10**6
PROBE = 2 * 10**9  # bytes of a file that a disk may take into its cache: a burst
NUM_VECTORS = 40
NUM_SAMPLES = 128


def seconds_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def write_plainly(path: Path, num_bytes: int) -> None:
    """In one go, on the disk when it returns."""
    content = np.random.default_rng(0).bytes(2**20)
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        for _ in range(num_bytes // len(content)):
            file.write(content)
        os.fsync(file.fileno())


def read_plainly(path: Path) -> None:
    room = bytearray(2**20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(room):
            pass


def forget(path: Path) -> None:
    """Take a file out of the system's cache, so that it is read from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_tiles(path: Path, num_bytes: int) -> None:
    """A shard of about so many bytes whose entries cost nothing."""
    num_rows = int((num_bytes / 2) ** 0.5)
    rows = np.random.default_rng(0).normal(size=(512, num_rows)).astype(np.float32)
    layout, identity = Layout(("w",), ((num_rows,),)), {"benchmark": num_rows}
    gradient, directions = np.zeros(num_rows), np.ones((num_rows, 2))
    with write_shard(path, layout, "float32", {}, gradient, 512, directions, identity) as writer:
        for start in range(0, num_rows, 512):
            stop = min(start + 512, num_rows)
            writer.add(slice(start, stop), slice(0, num_rows), rows[: stop - start])


def compute(folder: Path, hidden: int) -> tuple[float, float]:
    """The Hessian of experiment=large; gives the seconds of the stage compute, and the peak memory in bytes."""
    command = [sys.executable, "-m", "pipeline.run", "experiment=large", f"model.hidden_sizes=[{hidden}]"]
    command += ["stages=[train,compute]", "tracking=none", f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return json.loads((folder / "summary.json").read_text())["seconds_compute"], peak


def multiply(shard: Shard) -> None:
    vectors = np.random.default_rng(0).normal(size=(shard.num_rows, NUM_VECTORS)).astype(shard.dtype)
    shard.matvec(vectors)


def measure(folder: Path, hidden: int) -> dict[str, str]:
    """What was measured, in words."""
    found: dict[str, str] = {}
    probe = folder / "probe"
    burst = PROBE / seconds_of(lambda: write_plainly(probe, PROBE))
    found["disk, 2 GB in one go with fsync"] = f"{burst / MB:,.0f} MB/s"
    probe.unlink()
    alone = seconds_of(lambda: write_tiles(probe, PROBE))
    rate = probe.stat().st_size / alone
    found["a shard of 2 GB whose entries cost nothing"] = f"{rate / MB:,.0f} MB/s, {rate / burst:.0%} of that"
    probe.unlink()
    num_rows = 795 * hidden + 10
    num_bytes = file_size(Layout(("w",), ((num_rows,),)), 4)
    disk = num_bytes / seconds_of(lambda: write_plainly(probe, num_bytes))
    found["disk, as much as the shard below in one go"] = f"{num_bytes / 1e9:.1f} GB, {disk / MB:,.0f} MB/s"
    probe.unlink()
    gemm = gemm_rate(torch.zeros(1), 2048)
    run = RunFolder(folder / "run")
    seconds, peak = compute(run.path, hidden)
    shard = open_shard(run.shard(200, 0))
    size, flop = shard.path.stat().st_size, NUM_SAMPLES * shard.num_rows**2
    floors = {"disk": size / disk, "GEMM": flop / gemm}
    found[f"the Hessian of P = {shard.num_rows:,}, end to end"] = (
        f"{seconds:.1f} s, {size / seconds / MB:,.0f} MB/s"
    )
    found["  of what the disk takes, of what GEMM takes"] = ", ".join(
        f"{name} {floor:.1f} s ({floor / seconds:.0%})" for name, floor in floors.items()
    )
    found["  peak memory of that process"] = f"{peak / 1e9:.2f} GB"
    found["  size of the file, of the dense matrix"] = (
        f"{size / 1e9:.2f} GB, {size / shard.num_rows**2 / shard.dtype.itemsize:.3f}"
    )
    forget(shard.path)
    plain = seconds_of(lambda: read_plainly(shard.path))
    forget(shard.path)
    product = seconds_of(lambda: multiply(shard))
    found["plain reading"] = f"{size / plain / MB:,.0f} MB/s"
    found[f"H times {NUM_VECTORS} vectors, from the disk"] = (
        f"{product:.1f} s, {size / product / MB:,.0f} MB/s, {plain / product:.0%} of plain reading"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=124, help="units of the hidden layer, 795 weights each")
    parser.add_argument("--folder", type=Path, help="where to write; it is removed afterwards")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="storage-", dir=options.folder))
    try:
        found = measure(folder, options.hidden)
    finally:
        shutil.rmtree(folder)
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
