"""From what pairs of uses contribute to blocks of the matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from pipeline.layout import Layout
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.khatri_rao.captured_net import CapturedNet

Rows = slice | Tensor  # entries of a flat parameter: a stretch of it, or their indices


@dataclass(frozen=True)
class Contribution:
    """What one pair of uses adds to the block of two parameters: `values` at these rows, and from a first column on.

    square: both are the same use, and the columns end with the last of these rows: the rest follows by symmetry.
    """

    row: str
    rows: Rows
    column: str
    values: Tensor
    square: bool = False
    first_column: int = 0


@dataclass
class BlockAccumulator:
    """Turns pieces into blocks: at once where a parameter is used once, else when all its uses are added up.

    many: the parameters that are used more than once, or whose entries are stored in another order than they are made.
    """

    layout: Layout
    many: frozenset[str]
    block_filter: BlockFilter = all_blocks
    totals: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @staticmethod
    def over(net: CapturedNet, block_filter: BlockFilter = all_blocks) -> BlockAccumulator:
        counts = Counter(name for use in net.uses for name in use.names)
        reordered = {use.weight for use in net.uses if use.order is not None and use.weight is not None}
        many = frozenset(reordered | {name for name, n in counts.items() if n > 1})
        return BlockAccumulator(Layout.of(net.params), many, block_filter)

    def is_needed(self, row: str, rows: Rows, column: str) -> bool:
        """Whether these rows of the parameter `row` are, against all columns of `column`; sums are made whole."""
        if self.block_filter is all_blocks:
            return True
        spans = self.layout.slices()
        span = spans[row]
        if not self.many & {row, column} and isinstance(rows, slice):
            span = slice(span.start + rows.start, span.start + rows.stop)
        return self.block_filter(span, spans[column])

    def blocks_of(self, piece: Contribution) -> Iterator[Block]:
        if not self.many & {piece.row, piece.column} and isinstance(piece.rows, slice):
            spans = self.layout.slices()
            row, column = spans[piece.row].start, spans[piece.column].start
            rows = slice(row + piece.rows.start, row + piece.rows.stop)
            columns = slice(column + piece.first_column, column + piece.first_column + piece.values.shape[1])
            yield Block(rows, columns, piece.values).lower()
            return
        if self.is_needed(piece.row, piece.rows, piece.column):  # else some of its sum would be missing
            self._add(piece)

    def blocks_at_the_end(self) -> Iterator[Block]:
        spans = self.layout.slices()
        while self.totals:
            (row, column), total = self.totals.popitem()
            yield Block(spans[row], spans[column], total)

    def _add(self, piece: Contribution) -> None:
        names, sizes = self.layout.names, dict(zip(self.layout.names, self.layout.sizes, strict=True))
        row, column = piece.row, piece.column
        swapped = names.index(row) < names.index(column)
        pair = (column, row) if swapped else (row, column)
        if pair not in self.totals:
            self.totals[pair] = piece.values.new_zeros(sizes[pair[0]], sizes[pair[1]])
        total = self.totals[pair]
        _add_rows(total.T if swapped else total, piece)
        if row == column and not piece.square:
            _add_rows(total.T, piece)


def _add_rows(total: Tensor, piece: Contribution) -> None:
    part = total[:, piece.first_column : piece.first_column + piece.values.shape[1]]
    if isinstance(piece.rows, slice):
        part[piece.rows] += piece.values
    else:
        part.index_add_(0, piece.rows, piece.values)
