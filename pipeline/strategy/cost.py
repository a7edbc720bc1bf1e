"""What a strategy has to do, known from shapes alone."""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Derivatives along one direction that pass through the net, and the FLOP of the matrix products beside them."""

    num_tangents: int
    flop: float
