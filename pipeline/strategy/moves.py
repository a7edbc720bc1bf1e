"""What moves of a net's units or weights tell of the rows of one use: the sums over samples and positions.

Symbols as in `uses.py`; l is the use whose rows are made, m one that runs no earlier, (T, d, p) and (S, k, q) their
positions, units and inputs. With a tangent on unit i at position t of use l, the net answers δ̇[n, s, k] and ȧ[n, s, q]
at use m, and

    H[(i, p), (k, q)] = Σ_n Σ_t ã_l[n, t, p] Σ_s (δ̇[n, s, k] ã_m[n, s, q] + δ[n, s, k] ȧ[n, s, q]).

Which of the two sums over positions comes first decides the cost, and is chosen by it. Where the net is moved by
weights, the sum over t is done before it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.strategy.captured import Net
from pipeline.strategy.response import Response
from pipeline.strategy.sums import Piece, Rows
from pipeline.strategy.uses import Use

GROUP_BYTES = 4 * 2**20  # of the factor R that a matrix product reads: about what a core's cache holds
SMALL_PRODUCT = 2**20  # multiplications under which matrices are multiplied as a batch, and not one by one


@dataclass(frozen=True)
class UnitMoves:
    """One tangent for each position of these units of use `row`."""

    net: Net
    row: int
    units: range

    def tangents(self) -> Tensor:
        """Shaped (u·T, N, T, units)."""
        use = self.net.uses[self.row]
        T, N = use.num_positions, self.net.batch.num_samples
        tangents = self.net.deltas[self.row].new_zeros(len(self.units), T, T, use.num_units)
        for i, unit in enumerate(self.units):
            tangents[i, :, :, unit].fill_diagonal_(1)
        return tangents.flatten(0, 1)[:, None].expand(-1, N, -1, -1)

    def pieces(self, response: Response) -> Iterator[Piece]:
        positions = (-1, self.net.uses[self.row].num_positions)
        for m in range(self.row, len(self.net.uses)):
            pair = Pair(self.net, self.row, m)
            delta_dot, a_dot = (
                response.deltas[m - self.row].unflatten(0, positions),
                response.inputs[m - self.row],
            )
            a_dot = None if a_dot is None else a_dot.unflatten(0, positions)
            yield from pair.bias_columns_by_unit(self.units, delta_dot)
            if pair.column.weight is not None:
                for units in pair.groups_of(self.units):
                    part = slice(units.start - self.units.start, units.stop - self.units.start)
                    moved = None if a_dot is None else a_dot[part]
                    yield from pair.weight_columns_by_unit(units, delta_dot[part], moved)


@dataclass(frozen=True)
class Pair:
    """Rows of use `first` against columns of use `second`."""

    net: Net
    first: int
    second: int

    @property
    def row(self) -> Use:
        return self.net.uses[self.first]

    @property
    def column(self) -> Use:
        return self.net.uses[self.second]

    @property
    def same(self) -> bool:
        return self.first == self.second

    def bias_columns_by_unit(self, units: range, delta_dot: Tensor) -> Iterator[Piece]:
        """delta_dot: (u, T, N, S, k)."""
        if self.column.bias is None:
            return
        sums = delta_dot.sum(3).transpose(1, 2).flatten(1, 2)  # (u, N·T, k)
        if self.row.weight is not None:
            values = self._rows_by_product(units, sums)
            yield Piece(
                self.row.weight, weights_of_units(self.row, units), self.column.bias, values, self.same
            )
        if self.row.bias is not None:
            bias_rows = slice(units.start, units.stop)
            yield Piece(self.row.bias, bias_rows, self.column.bias, sums.sum(1), self.same)

    def weight_columns_by_unit(
        self, units: range, delta_dot: Tensor, a_dot: Tensor | None
    ) -> Iterator[Piece]:
        """delta_dot: (u, T, N, S, k), a_dot: (u, T, N, S, q)."""
        row, column = self.row, self.column
        assert column.weight is not None
        if self._sum_over_rows_first():
            yield from self._by_way_of_weights(units, delta_dot, a_dot)
            return
        lower = self.same and column.order is None and column.num_groups == 1
        if lower:  # units after these lie above the diagonal
            delta_dot = delta_dot[..., : units.stop]
        factor = self._factor(delta_dot, a_dot)
        if row.weight is not None:
            values = flat_columns(column, self._rows_by_product(units, factor))
            yield Piece(row.weight, weights_of_units(row, units), column.weight, values, self.same)
        if row.bias is not None and not (self.same and row.weight is not None):
            bias_rows = slice(units.start, units.stop)
            yield Piece(row.bias, bias_rows, column.weight, flat_columns(column, factor.sum(1)), self.same)

    def groups_of(self, units: range) -> Iterator[range]:
        """The units in groups for which the factor R fits the cache; one by one where positions are shared."""
        row, column = self.row, self.column
        size = row.num_positions * self.net.most_samples * column.num_weights * 4
        shared = max(row.num_positions, column.num_positions) > 1 or row.num_groups > 1
        step = 1 if shared else max(1, GROUP_BYTES // size)
        for start in range(units.start, units.stop, step):
            yield range(start, min(start + step, units.stop))

    def _rows_by_product(self, units: range, factor: Tensor) -> Tensor:
        """Σ over samples and positions of ã_l times the factor (u, N·T, columns): (u·p, columns)."""
        p, G = self.row.num_inputs, self.row.num_groups
        a = self.net.inputs[self.first].flatten(0, 1)  # (N·T, G·p)
        if G == 1:
            if factor[0].numel() * p < SMALL_PRODUCT:
                return torch.matmul(a.T, factor).flatten(0, 1)
            values = factor.new_empty(len(units), p, factor.shape[2])
            for rows, unit_factor in zip(values, factor, strict=True):
                torch.mm(a.T, unit_factor, out=rows)
            return values.flatten(0, 1)
        per_group = self.row.num_units // G
        parts = [
            a[:, p * (u // per_group) : p * (u // per_group + 1)].T @ f
            for u, f in zip(units, factor, strict=True)
        ]
        return torch.cat(parts)

    def _factor(self, delta_dot: Tensor, a_dot: Tensor | None) -> Tensor:
        """R = Σ_s (δ̇[u, t, n, s, k] ã[n, s, q] + δ[n, s, k] ȧ[u, t, n, s, q]) as (u, N·T, k·q)."""
        a, delta, groups = self.net.inputs[self.second], self.net.deltas[self.second], self.column.num_groups
        T, N, S = delta_dot.shape[1:4]
        if groups > 1:
            return self._factor_in_groups(delta_dot, a_dot)
        if T == 1 and S == 1:
            factor = delta_dot[:, 0, :, 0, :, None] * a[:, 0, None, :]  # (u, N, k, q)
            if a_dot is not None:
                factor.addcmul_(delta[:, 0, :, None], a_dot[:, 0, :, 0, None, :])
            return factor.flatten(2)
        u, k = len(delta_dot), delta_dot.shape[-1]
        left = delta_dot.permute(2, 0, 1, 4, 3).reshape(N, u * T * k, S)
        factor = torch.bmm(left, a).reshape(N, u, T, k, -1)
        if a_dot is not None:
            right = a_dot.permute(2, 0, 1, 3, 4).reshape(N * u * T, S, -1)
            repeated = delta.transpose(1, 2)[:, None].expand(-1, u * T, -1, -1).reshape(N * u * T, k, S)
            factor.view(N * u * T, k, -1).baddbmm_(repeated, right)
        return factor.transpose(0, 1).reshape(u, N * T, -1)

    def _factor_in_groups(self, delta_dot: Tensor, a_dot: Tensor | None) -> Tensor:
        groups = (self.column.num_groups, -1)
        a = self.net.inputs[self.second].unflatten(-1, groups)
        delta = self.net.deltas[self.second].unflatten(-1, groups)
        factor = torch.einsum("utnsgk,nsgq->untgkq", delta_dot.unflatten(-1, groups), a)
        if a_dot is not None:
            factor += torch.einsum("nsgk,utnsgq->untgkq", delta, a_dot.unflatten(-1, groups))
        return factor.flatten(3).flatten(1, 2)

    def _sum_over_rows_first(self) -> bool:
        """Whether to sum over the positions of the row's use first, and over those of the column's in the product."""
        row, column = self.row, self.column
        if row.weight is None or row.num_positions == 1 or row.num_groups > 1:
            return False
        T, S, P_row, P_column = row.num_positions, column.num_positions, row.num_weights, column.num_weights
        moved = 1 if self.same else 2
        columns_first = moved * row.num_units * T * S * P_column + T * P_row * P_column
        units = column.num_units + (0 if self.same else column.num_groups * column.num_inputs)
        rows_first = T * P_row * S * units + moved * S * P_row * P_column
        return rows_first < columns_first

    def _by_way_of_weights(self, units: range, delta_dot: Tensor, a_dot: Tensor | None) -> Iterator[Piece]:
        """The same rows from the answers to moves of the weights, which are sums of those to moves of the units."""
        row = self.row
        assert row.weight is not None
        assert self.column.weight is not None
        a = self.net.inputs[self.first].transpose(1, 2)  # (N, p, T)
        for i, unit in enumerate(units):
            one = range(unit, unit + 1)
            moves = _moved_by_weights(a, delta_dot[i])
            moved = None if a_dot is None else _moved_by_weights(a, a_dot[i])
            values = flat_columns(self.column, self.columns_by_weight(moves, moved))
            yield Piece(row.weight, weights_of_units(row, one), self.column.weight, values, self.same)
            if row.bias is not None and not self.same:
                moves = delta_dot[i].sum(0, keepdim=True)
                moved = None if a_dot is None else a_dot[i].sum(0, keepdim=True)
                values = flat_columns(self.column, self.columns_by_weight(moves, moved))
                yield Piece(row.bias, slice(unit, unit + 1), self.column.weight, values, self.same)

    def columns_by_weight(self, delta_dot: Tensor, a_dot: Tensor | None) -> Tensor:
        """Σ_n Σ_s (δ̇[c, n, s, k] ã[n, s, q] + δ[n, s, k] ȧ[c, n, s, q]) as (c, k·q)."""
        a, delta, groups = self.net.inputs[self.second], self.net.deltas[self.second], self.column.num_groups
        if groups > 1:
            split = (groups, -1)
            a, delta = a.unflatten(-1, split), delta.unflatten(-1, split)
            values = torch.einsum("cnsgk,nsgq->cgkq", delta_dot.unflatten(-1, split), a)
            if a_dot is not None:
                values += torch.einsum("nsgk,cnsgq->cgkq", delta, a_dot.unflatten(-1, split))
            return values.flatten(1)
        values = torch.matmul(delta_dot.flatten(1, 2).transpose(1, 2), a.flatten(0, 1))  # (c, k, q)
        if a_dot is not None:
            values += torch.matmul(delta.flatten(0, 1).T, a_dot.flatten(1, 2))
        return values.flatten(1)


def _moved_by_weights(a: Tensor, moves: Tensor) -> Tensor:
    """Σ_t ã[n, p, t] times the answers (T, N, S, k) to moves of a unit at t: (p, N, S, k)."""
    T, N, S, k = moves.shape
    return torch.bmm(a, moves.transpose(0, 1).reshape(N, T, S * k)).reshape(N, -1, S, k).transpose(0, 1)


@dataclass(frozen=True)
class WeightMoves:
    """One tangent for each of these entries of the weight of use `row`."""

    net: Net
    row: int
    entries: range

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


def weights_of_units(use: Use, units: range) -> Rows:
    """Where the weights of these units are in the flat parameter."""
    natural = slice(units.start * use.num_inputs, units.stop * use.num_inputs)
    return natural if use.order is None else use.order[natural]


def flat_columns(use: Use, values: Tensor) -> Tensor:
    """Columns of the weight, made in the order of units and inputs, in the order in which they are stored."""
    if use.order is None:
        return values
    return torch.empty_like(values).index_copy_(1, use.order, values)
