"""The rows of the parameters of one use, so many tangents at a time, by moving its units or its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

import torch

from pipeline.strategy.captured import Net
from pipeline.strategy.moves import BiasMoves, UnitMoves, WeightMoves
from pipeline.strategy.response import respond
from pipeline.strategy.sums import Piece
from pipeline.strategy.uses import Use

Moves = UnitMoves | WeightMoves | BiasMoves
log = logging.getLogger(__name__)


def tangents_of_use(use: Use) -> int:
    """How many tangents make its rows: one a unit and position, or one a weight."""
    return min(use.num_units * use.num_positions, _num_rows(use))


def rows_of_use(nets: Sequence[Net], row: int, num_bytes: int) -> Iterator[Piece]:
    """Pieces for the weight and the bias of use `row`; num_bytes: for the tangents that are held at once.

    nets: the same net on parts of the batch, whose rows add up.
    """
    use, chunk = nets[0].uses[row], _num_tangents(nets[0], row, num_bytes)
    if use.num_units * use.num_positions <= _num_rows(use):
        size = max(1, chunk // use.num_positions)
        yield from _in_chunks(nets, row, use.num_units, size, UnitMoves)
        return
    if use.weight is not None:
        yield from _in_chunks(nets, row, use.num_weights, chunk, WeightMoves)
    if use.bias is not None:
        yield from _in_chunks(nets, row, use.num_units, chunk, BiasMoves)


def _in_chunks(nets: Sequence[Net], row: int, size: int, chunk: int, kind: type[Moves]) -> Iterator[Piece]:
    """The pieces of so many moves at a time; half as many, from there on, when a GPU's memory does not hold them."""
    start = 0
    while start < size:
        part = range(start, min(start + chunk, size))
        try:
            if len(nets) == 1:
                moves = kind(nets[0], row, part)
                response = respond(nets[0], row, moves.tangents())
            else:
                total = _added_up(kind(net, row, part) for net in nets)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            chunk = len(part) // 2
            log.warning("out of memory with %d tangents at once: going on with %d.", len(part), chunk)
            continue
        yield from moves.pieces(response) if len(nets) == 1 else total
        start = part.stop


def _added_up(every: Iterable[Moves]) -> list[Piece]:
    total: list[Piece] = []
    for moves in every:
        pieces = moves.pieces(respond(moves.net, moves.row, moves.tangents()))
        if not total:
            total = list(pieces)
            continue
        for one, other in zip(total, pieces, strict=True):
            one.values.add_(other.values)
    return total


def _num_rows(use: Use) -> int:
    return use.num_weights + (use.num_units if use.bias else 0)


def _num_tangents(net: Net, row: int, num_bytes: int) -> int:
    """How many tangents fit: each needs the units and inputs of all uses from `row` on, a few times over."""
    bytes_each = 3 * net.most_samples * numbers_of(net.uses[row:]) * net.deltas[0].element_size()
    return max(1, num_bytes // bytes_each)


def numbers_of(uses: Sequence[Use]) -> int:
    """Numbers that a sample's z and ã of these uses are made of."""
    return sum(use.num_positions * (use.num_units + use.num_groups * use.num_inputs) for use in uses)
