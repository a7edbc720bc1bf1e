"""How long spectra take on this machine, from rates that are measured in a fraction of a second.

Rates are of one core, in seconds of the processor: other work on the machine changes them little.
`scripts/benchmark_plan.py` shows what is estimated beside what it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import log2

import numpy as np
from numpy.typing import DTypeLike
from threadpoolctl import threadpool_limits

from pipeline.spectrum.eigenvalues import eigenvalues_of, gpu_and_room

NUM_ROWS = 1200  # of the matrix whose eigenvalues are taken to see how long that takes
NUM_COLUMNS = 20  # of the vectors that it is multiplied with
HALF = 2400  # rows at which the part that grows with their square takes as long as the part that grows with their cube
SPEEDUP = 0.7  # so many threads, to this power, take the work of one
LARGE = 1.8  # times as long does a product take with a matrix that no cache holds
VECTORS = (
    100  # FLOP for each number of the basis and vector of a pass: to orthogonalize twice, and Ritz values
)
ON_GPU = 2.3  # the power of the rows with which the time grows there, as small matrices leave it idle
READING = 1.5e9  # bytes a second and core that are read from the system's cache, with their checksums


@dataclass(frozen=True)
class Rates:
    """Of one core: seconds for all eigenvalues of NUM_ROWS rows, and FLOP a second of products with a few vectors.

    on_gpu: seconds for the same eigenvalues on the GPU; None where there is none. num_threads: of this process.
    """

    eigenvalues: float
    products: float
    num_threads: int = 1
    on_gpu: float | None = None

    @staticmethod
    def of(dtype: DTypeLike) -> Rates:
        """Measured once in this process. Cost: 0.3 s."""
        return _measured(np.dtype(dtype).name)

    def rounded(self) -> Rates:
        """To powers of two, so that two runs on one machine see the same."""
        on_gpu = None if self.on_gpu is None else _rounded(self.on_gpu)
        return replace(
            self, eigenvalues=_rounded(self.eigenvalues), products=_rounded(self.products), on_gpu=on_gpu
        )

    def all_eigenvalues(self, num_rows: int, device: str = "cpu", num_threads: int | None = None) -> float:
        """Seconds for a matrix in memory. num_threads: None for all."""
        if device != "cpu" and self.on_gpu is not None:
            return self.on_gpu * float(max(1.0, num_rows / NUM_ROWS) ** ON_GPU)
        growth = num_rows**2 * (num_rows + HALF) / (NUM_ROWS**2 * (NUM_ROWS + HALF))
        return self.eigenvalues * growth / float((num_threads or self.num_threads) ** SPEEDUP)

    def passes(self, num_rows: int, num_columns: int, num_passes: int, stored_itemsize: int = 0) -> float:
        """Seconds for block Lanczos by one thread.

        stored_itemsize: bytes of a number, of a matrix that is read from disk at each pass; 0 for one in memory.
        """
        num_columns = min(num_columns, num_rows)
        num_passes = min(num_passes, -(-num_rows // num_columns))
        basis = num_columns * num_passes / 2  # columns, on average over the passes
        products = LARGE * 2 * num_rows**2 * num_columns / self.products
        vectors = VECTORS * num_rows * basis * num_columns / self.products
        return num_passes * (products + vectors + num_rows**2 / 2 * stored_itemsize / READING)


@cache
def _measured(dtype: str) -> Rates:
    matrix = np.random.default_rng(0).standard_normal((NUM_ROWS, NUM_ROWS)).astype(dtype)
    matrix += matrix.T.copy()
    vectors = matrix[:, :NUM_COLUMNS].copy()
    import torch  # as for the eigenvalues themselves

    on_gpu = None
    if gpu_and_room() is not None:
        on_gpu = _fastest(lambda: eigenvalues_of(matrix, "cuda"), time.perf_counter)
    num_threads = torch.get_num_threads()
    with threadpool_limits(1):
        eigenvalues = _fastest(lambda: eigenvalues_of(matrix), time.thread_time)
        products = _fastest(lambda: matrix @ vectors, time.thread_time, 5)
    return Rates(eigenvalues, 2 * NUM_ROWS**2 * NUM_COLUMNS / products, num_threads, on_gpu)


def _fastest(run: Callable[[], object], clock: Callable[[], float], times: int = 2) -> float:
    """The second time at the earliest: libraries start in the first."""
    run()
    seconds = []
    for _ in range(times):
        start = clock()
        run()
        seconds.append(clock() - start)
    return max(min(seconds), 1e-6)


def _rounded(rate: float) -> float:
    return float(2.0 ** round(log2(rate)))
