"""Tangents in unit space, rows of parameter space by matrix products over the samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.blocks import Block
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params
from pipeline.options import check_count
from pipeline.strategy.captured import Net
from pipeline.strategy.hvp import rows_by_product

GROUP_BYTES = 4 * 2**20  # of the factor R that a matrix product reads: about what a core's cache holds


@dataclass(frozen=True)
class KhatriRao:
    """H[(i, p), (k, q)] = Σ_n ã_l[n, p] · d/dε_l[n, i] (δ_m[n, k] ã_m[n, q]), for uses l, m of weights, m not before l.

    A weight that enters as z = W ã + b is differentiated through z: δ = ∂L/∂z comes from one ordinary backward
    pass, and its derivative by unit i of layer l, for all samples at once, from one tangent pass, because samples do
    not mix. So a layer costs min(P_l, d_l·T_l) tangent passes (d_l units, T_l positions that share the weight) instead
    of P_l, and the rest is a matrix product over the samples. Parameters that enter in another way, and all of them
    where samples mix, take Hessian-vector products.

    megabytes: for the tangents that are pushed through the net at once. tangents_per_product: in the rows of
    parameters that take Hessian-vector products.
    Cost: N·P² FLOP in matrix products for the triangle, and the tangent passes. Memory: a few times `megabytes`.
    Sources: Bishop 1992, doi:10.1162/neco.1992.4.4.494; Mizutani and Dreyfus 2007, doi:10.1109/IJCNN.2007.4371146.
    """

    megabytes: int = 64
    tangents_per_product: int = 128

    def __post_init__(self) -> None:
        check_count("strategy.megabytes", self.megabytes)
        check_count("strategy.tangents_per_product", self.tangents_per_product)

    def blocks(self, objective: Objective, params: Params, batch: Batch) -> Iterator[Block]:
        net = Net.of(objective, params, batch)
        sums = Sums.over(net)
        for row in range(len(net.uses)):
            for piece in _pieces(net, row, self.megabytes * 2**20):
                yield from sums.blocks_of(piece)
        yield from sums.blocks_at_the_end()
        columns = list(net.names)
        for name in params:
            if name not in net.names:
                columns.append(name)
                yield from rows_by_product(objective, params, batch, name, columns, self.tangents_per_product)

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 4 * self.megabytes * 2**20 + 2 * self.tangents_per_product * num_parameters * itemsize


@dataclass(frozen=True)
class Piece:
    """What one pair of uses adds to the block of two parameters: `values` at these rows and columns inside them.

    square: both are the same use, so that a parameter's own block is symmetric, and only its lower part is needed.
    """

    row: str
    rows: slice
    column: str
    columns: slice
    values: Tensor
    square: bool


@dataclass
class Sums:
    """Turns pieces into blocks: at once where a parameter is used once, else when all its uses are added up."""

    layout: Layout
    many: frozenset[str]
    totals: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @staticmethod
    def over(net: Net) -> Sums:
        counts = Counter(name for use in net.uses for name in (use.weight, use.bias) if name is not None)
        return Sums(Layout.of(net.params), frozenset(name for name, n in counts.items() if n > 1))

    def blocks_of(self, piece: Piece) -> Iterator[Block]:
        if not self.many & {piece.row, piece.column}:
            yield Block(
                self._in_all(piece.row, piece.rows), self._in_all(piece.column, piece.columns), piece.values
            ).lower()
            return
        self._add(piece.row, piece.rows, piece.column, piece.columns, piece.values)
        if piece.row == piece.column and not piece.square:
            self._add(piece.column, piece.columns, piece.row, piece.rows, piece.values.T)

    def blocks_at_the_end(self) -> Iterator[Block]:
        spans = self.layout.slices()
        for (row, column), total in self.totals.items():
            yield Block(spans[row], spans[column], total)

    def _add(self, row: str, rows: slice, column: str, columns: slice, values: Tensor) -> None:
        names = self.layout.names
        if names.index(row) < names.index(column):
            row, rows, column, columns, values = column, columns, row, rows, values.T
        if (row, column) not in self.totals:
            sizes = dict(zip(names, self.layout.sizes, strict=True))
            self.totals[row, column] = values.new_zeros(sizes[row], sizes[column])
        self.totals[row, column][rows, columns] += values

    def _in_all(self, name: str, inside: slice) -> slice:
        start = self.layout.slices()[name].start
        return slice(start + inside.start, start + inside.stop)


def _pieces(net: Net, row: int, num_bytes: int) -> Iterator[Piece]:
    """Rows of the parameters of use `row`, against those of all uses from it on, the cheaper way."""
    use = net.uses[row]
    num_weights = (use.num_units * use.num_inputs if use.weight else 0) + (use.num_units if use.bias else 0)
    if use.num_units * use.num_positions <= num_weights:
        return _pieces_by_unit(net, row, num_bytes)
    return _pieces_by_weight(net, row, num_bytes)


def _num_tangents(net: Net, row: int, num_bytes: int) -> int:
    """How many tangents fit: each needs the units and inputs of all uses from `row` on, a few times over."""
    numbers = sum(
        use.num_positions * (use.num_units + use.num_inputs) * net.batch.num_samples for use in net.uses[row:]
    )
    return max(1, num_bytes // (3 * numbers * net.deltas[0].element_size()))


def _pieces_by_unit(net: Net, row: int, num_bytes: int) -> Iterator[Piece]:
    """One tangent a unit and position; a product over samples and positions makes the rows of the weight."""
    use = net.uses[row]
    d, T, N = use.num_units, use.num_positions, net.batch.num_samples
    chunk = max(1, _num_tangents(net, row, num_bytes) // T)
    a_pNT = net.inputs[row].permute(2, 1, 0).reshape(-1, T * N)  # (p, T·N)
    for first in range(0, d, chunk):
        units = range(first, min(first + chunk, d))
        tangents = net.deltas[row].new_zeros(len(units), T, T, d)
        for i, unit in enumerate(units):
            tangents[i, :, :, unit].fill_diagonal_(1)
        whole = tangents.reshape(-1, 1, T, d).expand(-1, N, -1, -1)
        deltas, inputs = net.respond(row, whole)
        for m in range(row, len(net.uses)):
            delta_dot = deltas[m - row]
            a_dot = inputs[m - row - 1] if m > row else None
            group = max(1, GROUP_BYTES // (T * N * net.uses[m].num_units * net.uses[m].num_inputs * 4))
            for start in range(0, len(units), group):
                stop = min(start + group, len(units))
                part = slice(start * T, stop * T)
                yield from _unit_pieces(
                    net,
                    (row, m),
                    slice(first + start, first + stop),
                    a_pNT,
                    delta_dot[part],
                    None if a_dot is None else a_dot[part],
                )


def _unit_pieces(
    net: Net, pair: tuple[int, int], units: slice, a_pNT: Tensor, delta_dot: Tensor, a_dot: Tensor | None
) -> Iterator[Piece]:
    """The rows of some units of use l against use m: delta_dot (g·T, N, S, k), a_dot (g·T, N, S, q)."""
    (first, m), g = pair, units.stop - units.start
    row, column, same = net.uses[first], net.uses[m], first == m
    p, q = row.num_inputs, column.num_inputs
    TN = a_pNT.shape[1]
    if column.bias is not None:
        sums = delta_dot.sum(2).reshape(g, TN, -1)  # (g, T·N, k)
        every = slice(0, column.num_units)
        if row.weight is not None:
            values = torch.matmul(a_pNT, sums).reshape(g * p, -1)
            yield Piece(row.weight, _rows(units, p), column.bias, every, values, same)
        if row.bias is not None:
            yield Piece(row.bias, units, column.bias, every, sums.sum(1), same)
    if column.weight is not None:
        k = units.stop if same else column.num_units  # units after these lie above the diagonal
        factor = _factor(delta_dot[..., :k], net.inputs[m], net.deltas[m], a_dot).reshape(g, TN, k * q)
        every = slice(0, k * q)
        if row.weight is not None:
            values = torch.matmul(a_pNT, factor).reshape(g * p, k * q)
            yield Piece(row.weight, _rows(units, p), column.weight, every, values, same)
        mirrored = same and row.weight is not None  # (weight, bias) above holds the same numbers
        if row.bias is not None and not mirrored:
            yield Piece(row.bias, units, column.weight, every, factor.sum(1), same)


def _rows(units: slice, num_inputs: int) -> slice:
    return slice(units.start * num_inputs, units.stop * num_inputs)


def _factor(delta_dot: Tensor, a: Tensor, delta: Tensor, a_dot: Tensor | None) -> Tensor:
    """R = Σ_s (δ̇[c, n, s, k] ã[n, s, q] + δ[n, s, k] ȧ[c, n, s, q]), (c, N, k, q)."""
    if a.shape[1] == 1:
        factor = delta_dot[:, :, 0, :, None] * a[:, 0, None, :]
        return factor if a_dot is None else factor.addcmul_(delta[:, 0, :, None], a_dot[:, :, 0, None, :])
    factor = torch.matmul(delta_dot.transpose(2, 3), a)
    return factor if a_dot is None else factor.add_(torch.matmul(delta.transpose(1, 2), a_dot))


def _pieces_by_weight(net: Net, row: int, num_bytes: int) -> Iterator[Piece]:
    """One tangent a weight: where they are fewer than units times positions."""
    use = net.uses[row]
    d, p = use.num_units, use.num_inputs
    a, delta = net.inputs[row], net.deltas[row]
    chunk = _num_tangents(net, row, num_bytes)
    for name, size in ((use.weight, d * p), (use.bias, d)):
        if name is None:
            continue
        for first in range(0, size, chunk):
            rows = torch.arange(first, min(first + chunk, size), device=a.device)
            tangents = a.new_zeros(len(rows), *delta.shape)
            if name == use.weight:
                tangents[torch.arange(len(rows)), :, :, rows // p] = a[:, :, rows % p].permute(2, 0, 1)
            else:
                tangents[torch.arange(len(rows)), :, :, rows] = 1
            deltas, inputs = net.respond(row, tangents)
            for m in range(row, len(net.uses)):
                a_dot = inputs[m - row - 1] if m > row else None
                span = slice(first, first + len(rows))
                yield from _weight_pieces(net, (row, m), name, span, deltas[m - row], a_dot)


def _weight_pieces(
    net: Net, pair: tuple[int, int], name: str, rows: slice, delta_dot: Tensor, a_dot: Tensor | None
) -> Iterator[Piece]:
    """Some rows of a parameter of use l against use m: delta_dot (c, N, S, k), a_dot (c, N, S, q)."""
    first, m = pair
    use, column, same = net.uses[first], net.uses[m], first == m
    if column.bias is not None:
        yield Piece(name, rows, column.bias, slice(0, column.num_units), delta_dot.sum((1, 2)), same)
    if column.weight is not None and (not same or name == use.weight or use.weight is None):
        values = torch.matmul(
            delta_dot.flatten(1, 2).transpose(1, 2), net.inputs[m].flatten(0, 1)
        )  # (c, k, q)
        if a_dot is not None:
            values += torch.matmul(net.deltas[m].flatten(0, 1).T, a_dot.flatten(1, 2))
        size = column.num_units * column.num_inputs
        yield Piece(name, rows, column.weight, slice(0, size), values.flatten(1), same)
