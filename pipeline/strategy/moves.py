"""What is moved to make rows of one use: its units, the entries of its weight, or those of its bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.strategy.captured import Net
from pipeline.strategy.pairs import Pair, flat_columns
from pipeline.strategy.response import Response
from pipeline.strategy.sums import Piece, Rows


@dataclass(frozen=True)
class UnitMoves:
    """One tangent for each position of these units of use `row`; `entries` are the units."""

    net: Net
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

    def pieces(self, response: Response) -> Iterator[Piece]:
        positions = (-1, self.net.uses[self.row].num_positions)
        for m in range(self.row, len(self.net.uses)):
            pair = Pair(self.net, self.row, m)
            delta_dot = response.deltas[m - self.row].unflatten(0, positions)
            a_dot = response.inputs[m - self.row]
            a_dot = None if a_dot is None else a_dot.unflatten(0, positions)
            yield from pair.bias_columns_by_unit(self.entries, delta_dot)
            yield from pair.weight_columns_by_unit(self.entries, delta_dot, a_dot)


@dataclass(frozen=True)
class WeightMoves:
    """One tangent for each of these entries of the weight of use `row`."""

    net: Net
    row: int
    entries: range
    tangents_each: ClassVar[int] = 1

    @property
    def num_tangents(self) -> int:
        return len(self.entries)

    def tangents(self) -> Tensor:
        """Shaped (c, N, T, units): ã at the unit that the entry belongs to."""
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

    def pieces(self, response: Response) -> Iterator[Piece]:
        use = self.net.uses[self.row]
        assert use.weight is not None
        rows: Rows = slice(self.entries.start, self.entries.stop)
        if use.order is not None:
            rows = use.order[rows]
        return _pieces_of_entries(self.net, self.row, use.weight, rows, response)


@dataclass(frozen=True)
class BiasMoves:
    """One tangent for each of these entries of the bias of use `row`."""

    net: Net
    row: int
    entries: range
    tangents_each: ClassVar[int] = 1

    @property
    def num_tangents(self) -> int:
        return len(self.entries)

    def tangents(self) -> Tensor:
        """Shaped (c, N, T, units): 1 at the unit."""
        delta = self.net.deltas[self.row]
        tangents = delta.new_zeros(len(self.entries), *delta.shape)
        for i, unit in enumerate(self.entries):
            tangents[i, :, :, unit] = 1
        return tangents

    def pieces(self, response: Response) -> Iterator[Piece]:
        bias = self.net.uses[self.row].bias
        assert bias is not None
        rows = slice(self.entries.start, self.entries.stop)
        return _pieces_of_entries(self.net, self.row, bias, rows, response)


def _pieces_of_entries(net: Net, row: int, name: str, rows: Rows, response: Response) -> Iterator[Piece]:
    use = net.uses[row]
    for m in range(row, len(net.uses)):
        column, same = net.uses[m], m == row
        delta_dot, a_dot = response.deltas[m - row], response.inputs[m - row]
        if column.bias is not None:
            yield Piece(name, rows, column.bias, delta_dot.sum((1, 2)), same)
        if column.weight is not None and (not same or name == use.weight or use.weight is None):
            values = flat_columns(column, Pair(net, row, m).columns_by_weight(delta_dot, a_dot))
            yield Piece(name, rows, column.weight, values, same)
