"""Aggregation against what the disk and the page cache give: rates, memory, workers, passes.

    python scripts/benchmark_aggregate.py                    # all of it, about five minutes
    python scripts/benchmark_aggregate.py --only mean,memory

mean:    the weighted mean of 8 shards of P = 7,940 float32, against plain reads of the same files (into 1 MiB, no more)
         and against reading their tiles with checksums; the page cache emptied of them first, and not.
memory:  peak resident memory of the mean against the number of shards.
workers: aggregation by one worker process and by two.
Shards are synthetic (a low-rank matrix and noise); they are written to a folder beside this one and removed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.aggregate.moments import Weighting
from pipeline.aggregate.partial_results import PartialResults
from pipeline.aggregate.stage import aggregate, write_mean
from pipeline.cluster import Local, Threads
from pipeline.layout import Layout
from pipeline.shards import open_shard, write_shard
from pipeline.shards.hdf5 import read_array_file
from pipeline.spectrum import TopK
from pipeline.system.run_folder import RunFolder

LAYOUT = Layout(
    ("0.weight", "0.bias", "2.weight", "2.bias"), ((120, 60), (120,), (5, 120), (20,))
)  # P = 7,940
BUFFER = 2**20


def write_shards(folder: RunFolder, number: int, seed: int = 0) -> None:
    """Shards of one step, each a matrix of rank 20 with outliers, like a Hessian's."""
    rng = np.random.default_rng(seed)
    num_rows = LAYOUT.num_parameters
    for index in range(number):
        factor = rng.standard_normal((num_rows, 20), np.float32) / np.float32(num_rows**0.5)
        attrs = {
            "matrix": "hessian",
            "strategy": "hvp",
            "blocks": "all",
            "config_hash": "0" * 16,
            "weights_hash": "0" * 16,
            "step": 0,
            "batch_index": index,
            "num_batches": number,
            "num_samples": 128,
            "reduction": "mean",
            "loss": 1.0,
            "gradient_norm": 1.0,
        }
        gradient = rng.standard_normal(num_rows, np.float32)
        with write_shard(folder.shard(0, index), LAYOUT, "float32", attrs, gradient) as writer:
            for start in range(0, num_rows, 512):
                rows, cols = slice(start, min(start + 512, num_rows)), slice(0, min(start + 512, num_rows))
                scales = np.linspace(1, 20, 20, dtype=np.float32)
                writer.add(rows, cols, (factor[rows] * scales) @ factor[cols].T)


def forget(paths: list[Path]) -> None:
    """Empty the page cache of these files."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_plainly(paths: list[Path]) -> None:
    buffer = [memoryview(bytearray(BUFFER))]
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        while os.readv(handle, buffer):
            pass
        os.close(handle)


def read_tiles(paths: list[Path]) -> None:
    for path in paths:
        for _ in open_shard(path).tiles():
            pass


def mean_of(folder: RunFolder, num_workers: int) -> None:
    shards = [open_shard(path) for path in folder.shard_paths(0)]
    weighting = Weighting.of([128] * len(shards), "mean")
    folder.mean(0).unlink(missing_ok=True)
    unfinished = PartialResults(folder.unfinished(0), "")
    with Threads(num_workers).open(folder.path), threadpool_limits(1):
        write_mean(folder, 0, shards, weighting, num_workers, unfinished)
    unfinished.remove()


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare_mean(folder: RunFolder, rounds: int) -> None:
    """Rates in GB of shards a second, the three side by side in each round; medians and the ratio of each round."""
    paths = folder.shard_paths(0)
    size = sum(path.stat().st_size for path in paths) / 1e9
    actions: dict[str, Callable[[], object]] = {
        "plain reads": lambda: read_plainly(paths),
        "tiles, checked": lambda: read_tiles(paths),
        "the mean": lambda: mean_of(folder, 2),
    }
    for state in ("from the disk", "from the page cache"):
        rates: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(rounds):
            for name, action in actions.items():
                if state == "from the disk":
                    forget(paths)
                rates[name].append(size / seconds(action))
        for name, values in rates.items():
            told = ", ".join(f"{value:.2f}" for value in values)
            print(f"{state:20} {name:16} median {np.median(values):5.2f} GB/s ({told})", flush=True)
        for name in ("plain reads", "tiles, checked"):
            shares = [m / r for m, r in zip(rates["the mean"], rates[name], strict=True)]
            told = ", ".join(f"{share:.0%}" for share in shares)
            print(f"{state:20} the mean / {name}: median {np.median(shares):.0%} ({told})", flush=True)


def peak_of_this_process() -> float:
    """Resident memory at the peak, in MiB, since this program began; `ru_maxrss` would count what started it too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def peak_memory(path: Path, number: int) -> float:
    """MiB at the peak of a process that takes the mean of the first so many shards, over what it had before."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, 'scripts')\n"
        "from benchmark_aggregate import *\n"
        "folder, number = RunFolder(Path(sys.argv[1])), int(sys.argv[2])\n"
        "shards = [open_shard(path) for path in folder.shard_paths(0)[:number]]\n"
        "folder.mean(0).unlink(missing_ok=True)\n"
        "before = peak_of_this_process()\n"
        "with Threads(2).open(folder.path), threadpool_limits(1):\n"
        "    weighting = Weighting.of([128] * number, 'mean')\n"
        "    write_mean(folder, 0, shards, weighting, 2, Unfinished(folder.path / 'sums', '0'))\n"
        "print(peak_of_this_process() - before)\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(number)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def compare_memory(folder: RunFolder, numbers: tuple[int, ...]) -> None:
    for index in range(len(folder.shard_paths(0)), max(numbers)):  # the same bytes under other names
        os.link(folder.shard(0, index % 8), folder.shard(0, index))
    for number in numbers:
        print(
            f"the mean of {number:3} shards: {peak_memory(folder.path, number):.0f} MiB at the peak",
            flush=True,
        )
        shutil.rmtree(folder.path / "sums", ignore_errors=True)
    for index in range(8, max(numbers)):
        folder.shard(0, index).unlink()


def compare_workers(folder: RunFolder) -> None:
    found = {}
    for num_workers in (1, 2):
        folder.spectrum(0).unlink(missing_ok=True)
        taken = seconds(lambda n=num_workers: list(aggregate(folder, TopK(), Local(n))))  # type: ignore[misc]
        found[num_workers] = read_array_file(folder.spectrum(0)).arrays
        print(f"aggregation by {num_workers} worker process(es): {taken:.1f} s", flush=True)
    same = all(np.array_equal(values, found[2][name]) for name, values in found[1].items())
    print(f"the same numbers: {same}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="mean,memory,workers")
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs"), help="where shards are written: 1.2 GB"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    wanted = options.only.split(",")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = RunFolder(Path(scratch))
        write_shards(folder, 8)
        if "mean" in wanted:
            compare_mean(folder, options.rounds)
        if "memory" in wanted:
            compare_memory(folder, (2, 8, 16, 32, 64))
        if "workers" in wanted:
            compare_workers(folder)
    print(
        f"this process had {peak_of_this_process():.0f} MiB at its peak, load {os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()
