"""All eigenvalues of a symmetric matrix, by each LAPACK driver that the installed libraries have.

    python scripts/benchmark_eigenvalues.py --rows 1000 4000 --repeats 3

Every call is a process of its own. The drivers take turns, so that what else the machine does meets all alike; the
medians of the seconds of the processor and of the wall are told, and the ratio to the fastest.

torch: torch.linalg.eigvalsh, which is ssyevd of MKL in PyTorch's own package, and what `spectrum=exact` takes.
openblas: ssyevd and its two-stage form (ssyevd_2stage: first to a band, then to three diagonals), of the OpenBLAS in
NumPy's package. scipy: its eigvalsh by driver, on the OpenBLAS in SciPy's package.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Array = NDArray[np.floating]
LETTER = {"float32": "s", "float64": "d"}


def by_torch(matrix: Array) -> Array:
    import torch

    values: Array = torch.linalg.eigvalsh(torch.from_numpy(matrix)).numpy()
    return values


def by_scipy(driver: str) -> Callable[[Array], Array]:
    from scipy.linalg import eigvalsh

    return lambda matrix: eigvalsh(matrix, driver=driver)


def by_openblas(routine: str) -> Callable[[Array], Array]:
    """A routine of the OpenBLAS that NumPy's wheel brings, whose integers have 64 bits and whose names end in 64_."""

    def values_of(matrix: Array) -> Array:
        function = getattr(openblas(), f"scipy_{LETTER[matrix.dtype.name]}{routine}_64_")
        n, info = ctypes.c_int64(len(matrix)), ctypes.c_int64()
        values, copy = np.empty(len(matrix), matrix.dtype), matrix.copy()

        def call(work: Array, integers: NDArray[np.int64], sizes: tuple[int, int]) -> None:
            lengths = [ctypes.c_int64(size) for size in sizes]
            by_reference = ctypes.byref
            function(
                *(b"N", b"L", by_reference(n), address(copy), by_reference(n), address(values)),
                *(address(work), by_reference(lengths[0]), address(integers), by_reference(lengths[1])),
                by_reference(info),
            )
            assert info.value == 0, f"{routine}: info = {info.value}"

        work, integers = np.empty(1, matrix.dtype), np.empty(1, np.int64)
        call(work, integers, (-1, -1))  # how much room it needs
        sizes = int(1.001 * work[0]) + 1, int(integers[0])
        call(np.empty(sizes[0], matrix.dtype), np.empty(sizes[1], np.int64), sizes)
        return values

    return values_of


def openblas() -> ctypes.CDLL:
    folder = Path(np.__file__).parents[1] / "numpy.libs"
    [path] = folder.glob("libscipy_openblas64_*")
    return ctypes.CDLL(str(path))


def address(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


DRIVERS: dict[str, Callable[[], Callable[[Array], Array]]] = {
    "torch (MKL)": lambda: by_torch,
    "openblas ssyevd": lambda: by_openblas("syevd"),
    "openblas ssyevd_2stage": lambda: by_openblas("syevd_2stage"),
    "scipy ev": lambda: by_scipy("ev"),
    "scipy evd": lambda: by_scipy("evd"),
    "scipy evr": lambda: by_scipy("evr"),
}


def matrix_of(num_rows: int, dtype: str) -> Array:
    """Symmetric, with the spectrum of a trained net: few outliers, and a bulk over eight decades."""
    rng = np.random.default_rng(0)
    values = np.concatenate([10 ** rng.uniform(-8, -1, num_rows - 10), np.linspace(0.5, 3, 10)])
    matrix = np.diag(values)
    for _ in range(3):  # reflections: an orthogonal similarity without a QR of the whole
        normal = rng.standard_normal(num_rows)
        normal /= np.linalg.norm(normal)
        image = matrix @ normal
        image -= (normal @ image) * normal
        matrix -= 2 * (np.outer(normal, image) + np.outer(image, normal))
    return matrix.astype(dtype)


def measure(driver: str, num_rows: int, dtype: str, num_threads: int) -> dict[str, float]:
    matrix, values_of = matrix_of(num_rows, dtype), DRIVERS[driver]()
    with threadpool_limits(num_threads):
        values_of(matrix[:100, :100].copy())  # libraries start
        wall, processor = time.perf_counter(), time.process_time()
        values = values_of(matrix)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    error = abs(float(values.max()) - 3) / 3
    assert error < 1e-4, f"{driver}: the largest eigenvalue is off by {error:.1g}"
    return {"wall": wall, "processor": processor}


def in_process_of_its_own(*job: str | int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", json.dumps(job)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--dtype", choices=LETTER, default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--drivers", nargs="+", choices=DRIVERS, default=list(DRIVERS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(measure(*json.loads(told.one))))
        return
    for num_rows in told.rows:
        times: dict[str, list[dict[str, float]]] = {driver: [] for driver in told.drivers}
        for _ in range(told.repeats):
            for driver, found in times.items():
                found.append(in_process_of_its_own(driver, num_rows, told.dtype, told.threads))
        load = os.getloadavg()[0]
        print(f"\n{num_rows:,} rows, {told.dtype}, {told.threads} threads, load of the machine {load:.1f}")
        middle = {
            driver: [median(each[clock] for each in found) for clock in ("processor", "wall")]
            for driver, found in times.items()
        }
        least = min(processor for processor, _ in middle.values())
        for driver, (processor, wall) in middle.items():
            print(
                f"  {driver:<24} {processor:8.2f} s of the processor  {wall:8.2f} s  {processor / least:5.1f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
