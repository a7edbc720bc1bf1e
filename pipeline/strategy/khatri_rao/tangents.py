"""What is moved to make rows of one use: its units, the entries of its weight, or those of its bias."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from pipeline.strategy.khatri_rao.accumulator import Contribution, Rows
from pipeline.strategy.khatri_rao.captured_net import CapturedNet
from pipeline.strategy.khatri_rao.linear_use import LinearUse
from pipeline.strategy.khatri_rao.pair_blocks import Pair, flat_columns, weights_of_units
from pipeline.strategy.khatri_rao.perturbation import Response

# parameter of the rows, which of them, parameter of the columns
PieceFilter = Callable[[str, Rows, str], bool]
ROWS_BYTES = 256 * 2**20  # of rows that are made, or left out because they are there, together


class TangentRange(NamedTuple):
    """A use whose columns are made, and the entries that are moved for their rows."""

    column: int
    entries: range


@dataclass(frozen=True)
class UnitTangents:
    """One tangent for each position of these units of use `row`; `entries` are the units."""

    net: CapturedNet
    row: int
    entries: range

    @property
    def tangents_each(self) -> int:
        return self.net.uses[self.row].num_positions

    @property
    def num_tangents(self) -> int:
        return len(self.entries) * self.tangents_each

    def tangents(self) -> Tensor:
        """Shaped (u·T, N, T, units)."""
        use = self.net.uses[self.row]
        T, N = use.num_positions, self.net.batch.num_samples
        tangents = self.net.deltas[self.row].new_zeros(len(self.entries), T, T, use.num_units)
        for i, unit in enumerate(self.entries):
            tangents[i, :, :, unit].fill_diagonal_(1)
        return tangents.flatten(0, 1)[:, None].expand(-1, N, -1, -1)

    def parts(self, is_needed: PieceFilter) -> list[TangentRange]:
        """What is to be made of the pass. Which units go together does not depend on what is wanted: the same bits."""
        use, found = self.net.uses[self.row], []
        for m in range(self.row, len(self.net.uses)):
            columns = self.net.uses[m].num_weights * self.net.deltas[self.row].element_size()
            size = max(1, ROWS_BYTES // max(1, use.num_inputs * columns))
            for start in range(self.entries.start, self.entries.stop, size):
                units = range(start, min(start + size, self.entries.stop))
                rows = _rows_of_units(use, units)
                if any(is_needed(*each, name) for each in rows for name in self.net.uses[m].names):
                    found.append(TangentRange(m, units))
        return found

    def pieces(self, response: Response, parts: Sequence[TangentRange]) -> Iterator[Contribution]:
        positions = (-1, self.net.uses[self.row].num_positions)
        for m, units in parts:
            pair = Pair(self.net, self.row, m)
            here = slice(units.start - self.entries.start, units.stop - self.entries.start)
            delta_dot = response.deltas[m - self.row].unflatten(0, positions)[here]
            a_dot = response.inputs[m - self.row]
            a_dot = None if a_dot is None else a_dot.unflatten(0, positions)[here]
            yield from pair.bias_columns_by_unit(units, delta_dot)
            yield from pair.weight_columns_by_unit(units, delta_dot, a_dot)


@dataclass(frozen=True)
class _EntryTangents(ABC):
    """One tangent for each of these entries of a parameter of use `row`."""

    net: CapturedNet
    row: int
    entries: range
    tangents_each: ClassVar[int] = 1

    @property
    def num_tangents(self) -> int:
        return len(self.entries)

    @abstractmethod
    def tangents(self) -> Tensor:
        """Shaped (c, N, T, units)."""

    @property
    @abstractmethod
    def _rows(self) -> tuple[str, Rows]:
        """The parameter, and where its entries lie in it."""

    def parts(self, is_needed: PieceFilter) -> list[TangentRange]:
        name, rows = self._rows
        return [
            TangentRange(m, self.entries)
            for m in range(self.row, len(self.net.uses))
            if any(is_needed(name, rows, column) for column in self.net.uses[m].names)
        ]

    def pieces(self, response: Response, parts: Sequence[TangentRange]) -> Iterator[Contribution]:
        (name, rows), use = self._rows, self.net.uses[self.row]
        for m, _ in parts:
            column, same = self.net.uses[m], m == self.row
            delta_dot, a_dot = response.deltas[m - self.row], response.inputs[m - self.row]
            if column.bias is not None:
                yield Contribution(name, rows, column.bias, delta_dot.sum((1, 2)), same)
            if column.weight is not None and (not same or name == use.weight or use.weight is None):
                columns = Pair(self.net, self.row, m).columns_by_weight(delta_dot, a_dot)
                yield Contribution(name, rows, column.weight, flat_columns(column, columns), same)


class WeightTangents(_EntryTangents):
    """Entries of the weight: ã at the unit that the entry belongs to."""

    def tangents(self) -> Tensor:
        use, a = self.net.uses[self.row], self.net.inputs[self.row]
        each = torch.arange(len(self.entries), device=a.device)
        units, inputs = (
            (self.entries.start + each) // use.num_inputs,
            (self.entries.start + each) % use.num_inputs,
        )
        group = units // (use.num_units // use.num_groups)
        tangents = a.new_zeros(len(self.entries), *self.net.deltas[self.row].shape)
        tangents[each, :, :, units] = a[:, :, group * use.num_inputs + inputs].permute(2, 0, 1)
        return tangents

    @property
    def _rows(self) -> tuple[str, Rows]:
        use = self.net.uses[self.row]
        assert use.weight is not None
        rows = slice(self.entries.start, self.entries.stop)
        return use.weight, rows if use.order is None else use.order[rows]


class BiasTangents(_EntryTangents):
    """Entries of the bias: 1 at the unit."""

    def tangents(self) -> Tensor:
        delta = self.net.deltas[self.row]
        tangents = delta.new_zeros(len(self.entries), *delta.shape)
        for i, unit in enumerate(self.entries):
            tangents[i, :, :, unit] = 1
        return tangents

    @property
    def _rows(self) -> tuple[str, Rows]:
        bias = self.net.uses[self.row].bias
        assert bias is not None
        return bias, slice(self.entries.start, self.entries.stop)


def _rows_of_units(use: LinearUse, units: range) -> list[tuple[str, Rows]]:
    rows: list[tuple[str, Rows]] = []
    if use.weight is not None:
        rows.append((use.weight, weights_of_units(use, units)))
    if use.bias is not None:
        rows.append((use.bias, slice(units.start, units.stop)))
    return rows
