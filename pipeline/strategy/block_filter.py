"""Which part of a matrix is asked for."""

from __future__ import annotations

from collections.abc import Callable

BlockFilter = Callable[[slice, slice], bool]
"""Whether any of the entries rows x cols, or of their mirror image, is asked for; it says the same until all blocks are
made."""


def all_blocks(rows: slice, cols: slice) -> bool:
    return True
