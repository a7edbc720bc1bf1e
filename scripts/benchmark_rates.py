"""What this machine can do at best: multiply square matrices, and write memory that was never touched."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")
SIDE = 3072  # of the matrices that are multiplied, where no other is asked for
FRESH = 2**28  # bytes that are written


class Rates(NamedTuple):
    """FLOP and bytes a second, the best of some trials; itemsize: bytes of a number."""

    flop: float
    bytes: float
    itemsize: int

    @staticmethod
    def of(dtype: torch.dtype, device: torch.device, side: int = SIDE) -> Rates:
        """Measured on this device now, with the threads that torch may use, on matrices of `side` rows."""
        one, other = torch.randn(2, side, side, dtype=dtype, device=device)
        product = min(timed(lambda: one @ other)[0] for _ in range(6))
        writing = min(timed(lambda: _write(device))[0] for _ in range(5))
        return Rates(2 * side**3 / product, FRESH / writing, one.element_size())

    def __str__(self) -> str:
        return f"{self.flop / 1e9:.0f} GFLOP/s, {self.bytes / 1e9:.1f} GB/s into fresh memory"


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what it gave."""
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _write(device: torch.device) -> None:
    """On a CPU into NumPy's memory, for which Linux takes huge pages: the cheapest there is."""
    if device.type == "cpu":
        np.empty(FRESH, np.uint8).fill(1)
    else:
        torch.empty(FRESH, dtype=torch.uint8, device=device).fill_(1)
