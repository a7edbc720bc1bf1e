"""A part of a matrix: what is asked for has the bits that it has in the whole, and no pass is made for the rest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.cases import CASES, Case
from support.oracles import weights_of
from support.variants import Variant
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.objective.objective import objective_of
from pipeline.strategy import autograd, func, hvp, triangular
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.khatri_rao import passes, tangents

CELL = 4  # rows and columns of what is asked for together
OF_MANY_ROWS = [Variant("autograd"), Variant("triangular"), Variant("func"), Variant("hvp", "chunk_size", 3)]
OF_MANY_ROWS += [Variant("khatri_rao")]  # as a net of more weights takes them
VARIANTS = [*OF_MANY_ROWS, Variant("auto"), Variant("hvp")]
PAIRS = [(case, variant) for variant in OF_MANY_ROWS for case in CASES if variant.name not in case.refused_by]
each_pair = pytest.mark.parametrize(("case", "variant"), PAIRS, ids=[f"{v.id}-{c.id}" for c, v in PAIRS])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a large net: units by themselves, few rows at a time."""
    monkeypatch.setattr(tangents, "ROWS_BYTES", 1)
    monkeypatch.setattr(triangular, "ROWS_PER_BLOCK", 3)


def blocks_of(case: Case, variant: Variant, wanted: BlockFilter) -> list[Block]:
    model, criterion, batch, parameters = case.build()
    objective, params = objective_of(model, criterion, parameters)
    return list(variant.build().blocks(objective, params, batch, wanted))


def lower(blocks: list[Block], num_rows: int) -> tuple[Tensor, Tensor]:
    """The entries, and how often each was given."""
    values = torch.zeros(num_rows, num_rows, dtype=torch.float64)
    count = torch.zeros(num_rows, num_rows)
    for block in blocks:
        values[block.rows, block.cols] = block.values
        count[block.rows, block.cols] += 1
    return values.tril(), count.tril()


def asks_for(cells: np.ndarray) -> Callable[[slice, slice], bool]:
    """Cells (i, j), i >= j, of CELL rows and columns."""

    def wanted(rows: slice, cols: slice) -> bool:
        if cols.start >= rows.stop:
            rows, cols = cols, rows
        part = tuple(slice(span.start // CELL, -(-span.stop // CELL)) for span in (rows, cols))
        return bool(cells[part].any())

    return wanted


@each_pair
def test_what_is_asked_for_has_the_bits_of_the_whole(case: Case, variant: Variant) -> None:
    num_rows = sum(value.numel() for value in weights_of(case.build()))
    num_cells = -(-num_rows // CELL)
    rng = np.random.default_rng(num_rows)
    cells = np.tril(rng.random((num_cells, num_cells)) < 0.2)
    whole, _ = lower(blocks_of(case, variant, all_blocks), num_rows)
    found, count = lower(blocks_of(case, variant, asks_for(cells)), num_rows)
    asked = torch.from_numpy(np.kron(cells, np.ones((CELL, CELL), bool))[:num_rows, :num_rows]).tril()
    assert torch.equal(count[asked], torch.ones_like(count[asked]))
    assert count.max() <= 1
    assert torch.equal(found[count > 0], whole[count > 0])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.id)
def test_nothing_is_made_where_nothing_is_asked_for(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a pass was made")

    case = next(case for case in CASES if case.id == "mlp-gelu")
    for module, name in ((passes, "perturb_units"), (hvp, "vmap"), (autograd, "_rows"), (func, "hessian")):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(triangular, "unit_vectors", fail)
    with pytest.raises((AssertionError, PipelineError), match="a pass was made"):
        blocks_of(case, variant, all_blocks)
    assert blocks_of(case, variant, lambda *_: False) == []


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.id)
def test_rows_that_are_there_are_left_out(variant: Variant) -> None:
    """Else a part would cost as much as the whole."""
    case = next(case for case in CASES if case.id == "mlp-gelu")
    num_rows = sum(value.numel() for value in weights_of(case.build()))
    cells = np.zeros((-(-num_rows // CELL),) * 2, bool)
    cells[-1] = True
    whole, part = (
        sum(block.values.numel() for block in blocks_of(case, variant, wanted))
        for wanted in (all_blocks, asks_for(cells))
    )
    one_pass = variant in (Variant("auto"), Variant("hvp"))  # so few weights take one
    assert part == whole if one_pass else part < whole
