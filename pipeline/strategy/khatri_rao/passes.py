"""The rows of all captured parameters, so many tangents at a time, by moving units or weights."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain

from torch import Tensor

from pipeline.errors import is_out_of_memory
from pipeline.strategy.khatri_rao.accumulator import Contribution
from pipeline.strategy.khatri_rao.captured_net import CapturedNet
from pipeline.strategy.khatri_rao.linear_use import LinearUse
from pipeline.strategy.khatri_rao.perturbation import perturb_units
from pipeline.strategy.khatri_rao.tangents import (
    BiasTangents,
    PieceFilter,
    TangentRange,
    UnitTangents,
    WeightTangents,
)

Tangents = UnitTangents | WeightTangents | BiasTangents
log = logging.getLogger(__name__)


def tangents_of_use(use: LinearUse) -> int:
    """How many tangents make its rows: one a unit and position, or one a weight."""
    return min(use.num_units * use.num_positions, _num_rows(use))


def contributions(
    nets: Sequence[CapturedNet], num_bytes: int, is_needed: PieceFilter
) -> Iterator[Contribution]:
    """All rows, use by use in order of execution; num_bytes: for the tangents that are held at once.

    nets: the same net on parts of the batch, whose rows add up. When memory does not hold the tangents of a pass, it
    is made again with half as many, and so are those that follow. A pass of which nothing is wanted is left out.
    """
    jobs, most = _jobs(nets[0]), None
    while jobs:
        together = _next(nets[0], jobs, num_bytes, most)
        parts = [job.parts(is_needed) for job in together]
        if not any(parts):
            continue
        try:
            pieces = _pieces(nets, together, parts)
        except (RuntimeError, MemoryError) as error:
            num_tangents = sum(job.num_tangents for job in together)
            if num_tangents == 1 or not is_out_of_memory(error):
                raise
            jobs.extendleft(reversed(together))
            most = num_tangents // 2
            log.warning("out of memory with %d tangents at once: going on with %d.", num_tangents, most)
        else:
            yield from pieces


def _jobs(net: CapturedNet) -> deque[Tangents]:
    """What is to be moved for the rows of all uses: units where these are fewer than weights."""
    jobs: deque[Tangents] = deque()
    for row, use in enumerate(net.uses):
        if use.num_units * use.num_positions <= _num_rows(use):
            jobs.append(UnitTangents(net, row, range(use.num_units)))
            continue
        if use.weight is not None:
            jobs.append(WeightTangents(net, row, range(use.num_weights)))
        if use.bias is not None:
            jobs.append(BiasTangents(net, row, range(use.num_units)))
    return jobs


def _next(net: CapturedNet, jobs: deque[Tangents], num_bytes: int, most: int | None) -> list[Tangents]:
    """What goes into the next pass, taken off the jobs: a part of one, or several as long as they are small."""
    job = jobs.popleft()
    size = max(1, min(_num_tangents(net, job.row, num_bytes), most or num_bytes) // job.tangents_each)
    if size < len(job.entries):
        jobs.appendleft(replace(job, entries=job.entries[size:]))
        return [replace(job, entries=job.entries[:size])]
    together = [job]
    room = min(_num_tangents(net, job.row, num_bytes // 4), most or num_bytes) - job.num_tangents
    while jobs and jobs[0].num_tangents <= room:
        together.append(jobs.popleft())
        room -= together[-1].num_tangents
    return together


def _pieces(
    nets: Sequence[CapturedNet], together: Sequence[Tangents], parts: Sequence[Sequence[TangentRange]]
) -> Iterable[Contribution]:
    """Those of one pass; where the batch is in parts, they are added up."""
    if len(nets) == 1:
        return _of_pass(nets[0], together, parts)
    total: list[Contribution] = []
    for net in nets:
        pieces = _of_pass(net, together, parts)
        if not total:
            total = list(pieces)
            continue
        for one, other in zip(total, pieces, strict=True):
            assert (one.row, one.column, one.first_column) == (other.row, other.column, other.first_column)
            assert one.values.shape == other.values.shape
            one.values.add_(other.values)
    return total


def _of_pass(
    net: CapturedNet, together: Sequence[Tangents], parts: Sequence[Sequence[TangentRange]]
) -> Iterator[Contribution]:
    """The pass is made now, the pieces as they are asked for."""
    here = [replace(job, net=net) for job in together]
    response = perturb_units(net, _side_by_side(here))
    stops = list(accumulate(job.num_tangents for job in here))
    return chain.from_iterable(
        job.pieces(response.part(job.row, slice(stop - job.num_tangents, stop)), wanted)
        for job, stop, wanted in zip(here, stops, parts, strict=True)
    )


def _side_by_side(together: Sequence[Tangents]) -> dict[int, Tensor]:
    """The tangents one after another: each moves its own use, and no other one."""
    if len(together) == 1:
        return {together[0].row: together[0].tangents()}
    total = sum(job.num_tangents for job in together)
    tangents: dict[int, Tensor] = {}
    start = 0
    for job in together:
        values = job.tangents()
        if job.row not in tangents:
            tangents[job.row] = values.new_zeros(total, *values.shape[1:])
        tangents[job.row][start : start + len(values)] = values
        start += len(values)
    return tangents


def _num_rows(use: LinearUse) -> int:
    return use.num_weights + (use.num_units if use.bias else 0)


def _num_tangents(net: CapturedNet, row: int, num_bytes: int) -> int:
    """How many tangents fit: each needs the units and inputs of all uses from `row` on, a few times over."""
    bytes_each = 3 * net.most_samples * numbers_of(net.uses[row:]) * net.deltas[0].element_size()
    return max(1, num_bytes // bytes_each)


def numbers_of(uses: Sequence[LinearUse]) -> int:
    """Numbers that a sample's z and ã of these uses are made of."""
    return sum(use.num_positions * (use.num_units + use.num_groups * use.num_inputs) for use in uses)
