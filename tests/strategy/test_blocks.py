from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.strategy.blocks import STRIP, Block, assemble


def symmetric(num_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(num_rows, num_rows, generator=generator, dtype=torch.float64)
    return matrix + matrix.T


def cut(matrix: Tensor, *bounds: int) -> list[Block]:
    """The lower triangle of a grid with these bounds, last block first; those on the diagonal reach above it."""
    spans = [slice(*pair) for pair in zip((0, *bounds), (*bounds, len(matrix)), strict=True)]
    blocks = [Block(r, c, matrix[r, c].clone()) for i, r in enumerate(spans) for c in spans[: i + 1]]
    for block in blocks:
        if block.rows == block.cols:
            block.values.masked_fill_(torch.ones_like(block.values).triu(1).bool(), 1e9)
    return blocks[::-1]


def test_a_block_above_the_diagonal_is_transposed() -> None:
    matrix = symmetric(7)
    found = Block(slice(0, 2), slice(4, 7), matrix[0:2, 4:7]).lower()
    assert (found.rows, found.cols) == (slice(4, 7), slice(0, 2))
    assert torch.equal(found.values, matrix[4:7, 0:2])


@pytest.mark.parametrize(
    ("rows", "cols"), [(slice(4, 7), slice(0, 2)), (slice(0, 3), slice(0, 3)), (slice(1, 3), slice(0, 7))]
)
def test_a_block_that_touches_the_triangle_stays(rows: slice, cols: slice) -> None:
    block = Block(rows, cols, symmetric(7)[rows, cols])
    assert block.lower() is block


@pytest.mark.parametrize("num_rows", [1, 2, 7, STRIP - 1, STRIP, STRIP + 1, 2 * STRIP + 3])
def test_assembly_mirrors_the_lower_triangle(num_rows: int) -> None:
    matrix = symmetric(num_rows)
    bounds = sorted({num_rows // 3, num_rows // 2} - {0})
    assert torch.equal(assemble(cut(matrix, *bounds), num_rows), matrix)


def test_rows_that_reach_above_the_diagonal() -> None:
    matrix = symmetric(7)
    wrong_above = matrix.tril() + torch.full_like(matrix, 1e9).triu(1)
    rows = (Block(slice(i, i + 1), slice(0, 7), wrong_above[i : i + 1]) for i in range(7))
    assert torch.equal(assemble(rows, 7), matrix)


def test_dtype_is_that_of_the_blocks() -> None:
    assert assemble(cut(symmetric(7).float(), 3), 7).dtype == torch.float32


@pytest.mark.parametrize("missing", range(6))
def test_a_missing_block_is_noticed(missing: int) -> None:
    blocks = cut(symmetric(7), 2, 5)
    del blocks[missing]
    with pytest.raises(ValueError, match="entries of the lower triangle"):
        assemble(blocks, 7)


@pytest.mark.parametrize("repeated", range(6))
def test_a_repeated_block_is_noticed(repeated: int) -> None:
    blocks = cut(symmetric(7), 2, 5)
    with pytest.raises(ValueError, match="some twice"):
        assemble([*blocks, blocks[repeated]], 7)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("entry", [(0, 0), (6, 2), (STRIP + 2, STRIP + 1), (STRIP + 2, 0)])
def test_an_entry_that_is_not_finite(value: float, entry: tuple[int, int]) -> None:
    matrix = symmetric(STRIP + 3)
    matrix[entry] = value
    for dtype, remedy in ((torch.float32, r".*dtype=torch\.float64"), (torch.float64, "[^=]*$")):
        everything = Block(slice(0, STRIP + 3), slice(0, STRIP + 3), matrix.to(dtype))
        with pytest.raises(PipelineError, match=r"NaN or infinite entries in rows \d+ to \d+: " + remedy):
            assemble([everything], STRIP + 3)


def test_what_lies_above_the_diagonal_need_not_be_finite() -> None:
    matrix = symmetric(7)
    above = matrix.clone()
    above[2, 5] = torch.nan
    assert torch.equal(assemble([Block(slice(0, 7), slice(0, 7), above)], 7), matrix)


def test_no_block_at_all() -> None:
    with pytest.raises(ValueError, match="28 entries"):
        assemble([], 7)
