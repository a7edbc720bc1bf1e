"""The rows of one use against the columns of one that runs no earlier, from how the net answers.

Symbols as in `linear_use.py`; l is the use whose rows are made, m the other one, (T, d, p) and (S, k, q) their
positions, units and inputs. With a tangent on unit i at position t of use l, the net answers δ̇[n, s, k] and
ȧ[n, s, q] at use m, and

    H[(i, p), (k, q)] = Σ_n Σ_t ã_l[n, t, p] Σ_s (δ̇[n, s, k] ã_m[n, s, q] + δ[n, s, k] ȧ[n, s, q]).

Which of the two sums over positions comes first decides the cost, and is chosen by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.strategy.khatri_rao.accumulator import Contribution, Rows
from pipeline.strategy.khatri_rao.captured_net import CapturedNet
from pipeline.strategy.khatri_rao.column_products import Products
from pipeline.strategy.khatri_rao.linear_use import LinearUse

FACTOR_BYTES = 2 * 2**20  # of what a matrix product reads or writes at once: about what a core's cache holds
PRODUCTS_BYTES = 16 * 2**20  # of products of inputs with each other, above which they are not kept
UNITS_AT_ONCE = 2  # of which rows are made together: with more, what was made first has left the cache


@dataclass(frozen=True)
class Pair:
    """Rows of use `first` against columns of use `second`."""

    net: CapturedNet
    first: int
    second: int

    @property
    def row(self) -> LinearUse:
        return self.net.uses[self.first]

    @property
    def column(self) -> LinearUse:
        return self.net.uses[self.second]

    @property
    def same(self) -> bool:
        return self.first == self.second

    def bias_columns_by_unit(self, units: range, delta_dot: Tensor) -> Iterator[Contribution]:
        """delta_dot: (u, T, N, S, k)."""
        if self.column.bias is None:
            return
        sums = delta_dot.sum(3).transpose(1, 2).flatten(1, 2)  # (u, N·T, k)
        if self.row.weight is not None:
            values = self._rows_by_product(units, sums)
            yield Contribution(
                self.row.weight, weights_of_units(self.row, units), self.column.bias, values, self.same
            )
        if self.row.bias is not None:
            bias_rows = slice(units.start, units.stop)
            yield Contribution(self.row.bias, bias_rows, self.column.bias, sums.sum(1), self.same)

    def weight_columns_by_unit(
        self, units: range, delta_dot: Tensor, a_dot: Tensor | None
    ) -> Iterator[Contribution]:
        """delta_dot: (u, T, N, S, k), a_dot: (u, T, N, S, q)."""
        if self.column.weight is None:
            return
        if self._keeps_products():
            if self.same:
                yield from self._by_squares(units, delta_dot[:, 0, :, 0])
                return
            moves = None if a_dot is None else MovedInputs.of(a_dot[:, 0, :, 0])
            if moves is None or (
                moves.few and not self.net.is_part
            ):  # how few is seen in the data of one part
                yield from self._by_products(units, delta_dot[:, 0, :, 0], moves)
                return
        for group in self._groups_of(units):
            part = slice(group.start - units.start, group.stop - units.start)
            moved = None if a_dot is None else a_dot[part]
            if self._sum_over_rows_first():
                yield from self._by_way_of_weights(group, delta_dot[part], moved)
            else:
                yield from self._by_factors(group, delta_dot[part], moved)

    def _by_squares(self, units: range, delta_dot: Tensor) -> Iterator[Contribution]:
        """Both uses are the same. delta_dot: (u, N, k)."""
        row, a = self.row, self.net.inputs[self.first][:, 0]
        assert row.weight is not None
        products = Products.of(a, a)
        for group in _parts(units, UNITS_AT_ONCE):
            part = slice(group.start - units.start, group.stop - units.start)
            values = products.rows(delta_dot[part, :, : group.stop])  # later units lie above the diagonal
            yield Contribution(row.weight, weights_of_units(row, group), row.weight, values, square=True)

    def _by_products(
        self, units: range, delta_dot: Tensor, moved: MovedInputs | None
    ) -> Iterator[Contribution]:
        """The rows of the column's use against the columns of the row's. delta_dot: (u, N, k)."""
        row, column = self.row, self.column
        assert row.weight is not None
        assert column.weight is not None
        a, b = self.net.inputs[self.first][:, 0], self.net.inputs[self.second][:, 0]
        delta = self.net.deltas[self.second][:, 0]
        products = Products.of(b, a)
        for group in _parts(range(column.num_units), UNITS_AT_ONCE):
            part = slice(group.start, group.stop)
            values = products.rows(delta_dot[..., part].permute(2, 1, 0))
            if moved is not None:
                moved.add_to(values.view(len(group), len(b.T), len(units), -1), delta[:, part], a)
            rows = weights_of_units(column, group)
            first = units.start * row.num_inputs
            yield Contribution(column.weight, rows, row.weight, values, first_column=first)
        if row.bias is not None:
            values = torch.matmul(delta_dot.transpose(1, 2), b)  # (u, k, q)
            if moved is not None:
                values += torch.matmul(delta.T, moved.a_dot)
            yield Contribution(row.bias, slice(units.start, units.stop), column.weight, values.flatten(1))

    def _by_factors(self, units: range, delta_dot: Tensor, a_dot: Tensor | None) -> Iterator[Contribution]:
        row, column = self.row, self.column
        assert column.weight is not None
        lower = self.same and column.order is None and column.num_groups == 1
        last = units.stop if lower else column.num_units  # units after these lie above the diagonal
        for chunk in _parts(range(last), self._num_columns()):
            delta = self.net.deltas[self.second][..., chunk.start : chunk.stop]
            factor = self._factor(delta_dot[..., chunk.start : chunk.stop], a_dot, delta)
            first = chunk.start * column.num_inputs
            if row.weight is not None:
                values = flat_columns(column, self._rows_by_product(units, factor))
                rows = weights_of_units(row, units)
                yield Contribution(row.weight, rows, column.weight, values, self.same, first)
            if row.bias is not None and not (self.same and row.weight is not None):
                rows, values = slice(units.start, units.stop), flat_columns(column, factor.sum(1))
                yield Contribution(row.bias, rows, column.weight, values, self.same, first)

    def _keeps_products(self) -> bool:
        """Whether the products of both inputs with each other are made once, and not a factor for each unit."""
        row, column = self.row, self.column
        for use in (row, column):
            if use.weight is None or use.order is not None or use.num_positions > 1 or use.num_groups > 1:
                return False
        sizes = self.net.most_samples, row.num_inputs, column.num_inputs
        return Products.num_bytes(*sizes, self.net.deltas[self.first].element_size()) <= PRODUCTS_BYTES

    @property
    def _shares(self) -> bool:
        return max(self.row.num_positions, self.column.num_positions) > 1 or self.row.num_groups > 1

    def _num_columns(self) -> int:
        """Units of the column's use whose factor R, and rows, fit the cache; all where positions are shared."""
        column = self.column
        if self._shares or column.num_groups > 1 or column.order is not None:
            return column.num_units
        longest = max(self.net.most_samples, self.row.num_inputs)
        return FACTOR_BYTES // (longest * column.num_inputs * self.net.deltas[0].element_size())

    def _groups_of(self, units: range) -> Iterator[range]:
        """The units in groups for which that holds too; one by one where positions are shared."""
        return _parts(units, 1 if self._shares else self._num_columns() // self.column.num_units)

    def _rows_by_product(self, units: range, factor: Tensor) -> Tensor:
        """Σ over samples and positions of ã_l times the factor (u, N·T, columns): (u·p, columns)."""
        p, G = self.row.num_inputs, self.row.num_groups
        a = self.net.inputs[self.first].flatten(0, 1)  # (N·T, G·p)
        if G == 1:
            return torch.matmul(a.T, factor).flatten(0, 1)
        per_group = self.row.num_units // G
        parts = [
            a[:, p * (u // per_group) : p * (u // per_group + 1)].T @ f
            for u, f in zip(units, factor, strict=True)
        ]
        return torch.cat(parts)

    def _factor(self, delta_dot: Tensor, a_dot: Tensor | None, delta: Tensor) -> Tensor:
        """R = Σ_s (δ̇[u, t, n, s, k] ã[n, s, q] + δ[n, s, k] ȧ[u, t, n, s, q]) as (u, N·T, k·q)."""
        a, groups = self.net.inputs[self.second], self.column.num_groups
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

    def _by_way_of_weights(
        self, units: range, delta_dot: Tensor, a_dot: Tensor | None
    ) -> Iterator[Contribution]:
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
            yield Contribution(row.weight, weights_of_units(row, one), self.column.weight, values, self.same)
            if row.bias is not None and not self.same:
                moves = delta_dot[i].sum(0, keepdim=True)
                moved = None if a_dot is None else a_dot[i].sum(0, keepdim=True)
                values = flat_columns(self.column, self.columns_by_weight(moves, moved))
                yield Contribution(row.bias, slice(unit, unit + 1), self.column.weight, values, self.same)

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


@dataclass(frozen=True)
class MovedInputs:
    """a_dot: ȧ[u, n, q]; units, inputs: where it is not zero for every sample, as (u, q)."""

    a_dot: Tensor
    units: Tensor
    inputs: Tensor

    @staticmethod
    def of(a_dot: Tensor) -> MovedInputs:
        units, inputs = (a_dot != 0).any(1).nonzero(as_tuple=True)
        return MovedInputs(a_dot, units, inputs)

    @property
    def few(self) -> bool:
        """As behind an activation function, where a unit moves one input only."""
        return len(self.units) <= 2 * max(self.a_dot.shape[0], self.a_dot.shape[2])

    def add_to(self, values: Tensor, delta: Tensor, a: Tensor) -> None:
        """Add Σ_n δ[n, k] ȧ[u, n, q] ã[n, p] to the values (k, q, u, p)."""
        moves = self.a_dot[self.units, :, self.inputs]  # (pairs, N)
        sums = torch.matmul(delta.T[:, None] * moves, a)  # (k, pairs, p)
        values[:, self.inputs, self.units] += sums


def _moved_by_weights(a: Tensor, moves: Tensor) -> Tensor:
    """Σ_t ã[n, p, t] times the answers (T, N, S, k) to moves of a unit at t: (p, N, S, k)."""
    T, N, S, k = moves.shape
    return torch.bmm(a, moves.transpose(0, 1).reshape(N, T, S * k)).reshape(N, -1, S, k).transpose(0, 1)


def _parts(whole: range, size: int) -> Iterator[range]:
    """Consecutive parts, of at least one each."""
    for start in range(whole.start, whole.stop, max(1, size)):
        yield range(start, min(start + max(1, size), whole.stop))


def weights_of_units(use: LinearUse, units: range) -> Rows:
    """Where the weights of these units are in the flat parameter."""
    natural = slice(units.start * use.num_inputs, units.stop * use.num_inputs)
    return natural if use.order is None else use.order[natural]


def flat_columns(use: LinearUse, values: Tensor) -> Tensor:
    """Columns of the weight, made in the order of units and inputs, in the order in which they are stored."""
    if use.order is None:
        return values
    return torch.empty_like(values).index_copy_(1, use.order, values)
