"""Blocks: the rectangles in which strategies hand over a symmetric matrix, and their assembly in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import NotFiniteError


@dataclass(frozen=True)
class Block:
    """The entries rows x cols of the matrix; `values` has the shape (rows, cols).

    The blocks of one matrix cover its lower triangle exactly once. A block may reach above the diagonal; what
    lies there is ignored.
    """

    rows: slice
    cols: slice
    values: Tensor

    def lower(self) -> Block:
        """The same entries in the lower triangle: a block that lies above the diagonal is transposed."""
        if self.cols.start >= self.rows.stop:
            return Block(self.cols, self.rows, self.values.T)
        return self


def assemble(blocks: Iterable[Block], num_rows: int) -> Tensor:
    """The dense symmetric matrix, (P, P), from blocks of its lower triangle. Memory: P² numbers and one block.

    Each entry is written to both triangles while its block is still in the cache.

    Raises:
        NotFiniteError: an entry is NaN or infinite.
    """
    dense: Tensor | None = None
    num_missing = num_rows * (num_rows + 1) // 2
    for block in blocks:
        if dense is None:
            dense = _new_square(num_rows, block.values)
        height = STRIP if block.values.numel() > SMALL else max(1, len(block.values))
        for start in range(block.rows.start, block.rows.stop, height):
            rows = slice(start, min(start + height, block.rows.stop))
            values = block.values[rows.start - block.rows.start : rows.stop - block.rows.start]
            num_missing -= _write(dense, rows, block.cols, values)
    if dense is None or num_missing != 0:
        raise ValueError(f"{num_missing} entries of the lower triangle were never given, or some twice")
    return dense


def _new_square(num_rows: int, like: Tensor) -> Tensor:
    """An uninitialized (P, P) tensor of the same kind.

    On a CPU it is NumPy's memory, for which Linux is asked for huge pages: to touch 200 MB for the first time takes
    a quarter of the time then. It is touched here, in order, and not by the first columns that are written.
    """
    if like.device.type != "cpu" or like.dtype not in NUMPY_DTYPES:
        return like.new_empty((num_rows, num_rows))
    square = torch.from_numpy(np.empty((num_rows, num_rows), NUMPY_DTYPES[like.dtype]))
    square.view(-1)[:: HUGE_PAGE // square.element_size()] = 0
    return square


def _write(dense: Tensor, rows: slice, cols: slice, values: Tensor) -> int:
    """Write what lies in the lower triangle, and its mirror image; gives the number of entries of the former."""
    below = slice(cols.start, min(cols.stop, rows.start))  # columns that lie under the diagonal in all rows
    num_written = 0
    if below.start < below.stop:
        part = values[:, : below.stop - cols.start]
        check_finite(part, rows)
        dense[rows, below] = part
        dense[below, rows] = part.T
        num_written += part.numel()
    across = slice(max(cols.start, rows.start), min(cols.stop, rows.stop))  # columns that the diagonal passes
    if across == rows:
        part = values[:, across.start - cols.start : across.stop - cols.start]
        square = torch.where(_lower_half(len(part), part.device), part, part.T)
        check_finite(square, rows)
        dense[rows, across] = square
        num_written += len(square) * (len(square) + 1) // 2
    elif across.start < across.stop:
        part = values[:, across.start - cols.start : across.stop - cols.start]
        lower = torch.arange(rows.start, rows.stop)[:, None] >= torch.arange(across.start, across.stop)
        lower = lower.to(part.device)
        check_finite(part.where(lower, 0), rows)
        dense[rows, across] = torch.where(lower, part, dense[rows, across])
        dense[across, rows] = torch.where(lower.T, part.T, dense[across, rows])
        num_written += int(lower.sum())
    return num_written


@lru_cache(maxsize=8)
def _lower_half(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def check_finite(values: Tensor, rows: slice | None = None) -> None:
    """Refuse NaN and infinities; rows: where the values lie, for the message."""
    # a finite sum tells it in one pass
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        where = "" if rows is None else f" in rows {rows.start} to {rows.stop - 1}"
        other = "" if values.dtype == torch.float64 else ", or use dtype=torch.float64"
        raise NotFiniteError(
            f"the matrix has NaN or infinite entries{where}",
            f"look for a point of the loss without derivatives (a norm of zero, a logarithm of zero){other}",
        )


NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
HUGE_PAGE = 2**21  # bytes
SMALL = 2**18  # numbers of a block that is written at once
STRIP = 256  # rows written at a time: strip and mirror image stay in the cache
