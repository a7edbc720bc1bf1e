"""Blocks: the rectangles in which strategies hand over a symmetric matrix, and their assembly in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import PipelineError


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

    Raises:
        PipelineError: an entry is NaN or infinite.
    """
    dense: Tensor | None = None
    for block in blocks:
        if dense is None:
            dense = block.values.new_full((num_rows, num_rows), torch.nan)
        dense[block.rows, block.cols] = block.values
    if dense is None:
        raise ValueError("a strategy yielded no block")
    for start in range(0, num_rows, MIRROR):
        stop = min(start + MIRROR, num_rows)
        square = dense[start:stop, start:stop]
        square.copy_(square.tril() + square.tril(-1).T)
        dense[start:stop, stop:] = dense[stop:, start:stop].T
        if not torch.isfinite(dense[start:stop]).all():
            raise PipelineError(
                f"the matrix has NaN or infinite entries in rows {start} to {stop - 1}: "
                "look at the loss and the weights, or use dtype=torch.float64."
            )
    return dense


MIRROR = 512  # rows mirrored at a time: two such squares stay in the cache
