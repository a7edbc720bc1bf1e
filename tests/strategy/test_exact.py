"""Every strategy on every case: against finite differences, against double backward, and block by block."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from support.cases import CASES, Case
from support.oracles import FiniteDifferences, double_backward, finite_differences, weights_of
from support.variants import Variant, declared, distinct
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.objective.objective import objective_of
from pipeline.strategy import KhatriRao
from pipeline.strategy.blocks import Block, assemble

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@cache
def num_weights(case: Case) -> int:
    return sum(value.numel() for value in weights_of(case.build()))


PAIRS = [
    (case, variant)
    for case in CASES
    for variant in distinct(num_weights(case), case.build().batch.num_samples, case.takes_products)
]


def each_pair(pairs: list[tuple[Case, Variant]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("case", "variant"), pairs, ids=[f"{v.id}-{c.id}" for c, v in pairs])


computed = [(case, variant) for case, variant in PAIRS if variant.name not in case.refused_by]
refused = [(case, variant) for case, variant in PAIRS if variant.name in case.refused_by]


@cache
def reference(case: Case) -> Tensor:
    return double_backward(case.build())


@cache
def differences(case: Case) -> FiniteDifferences:
    return finite_differences(case.build())


@cache
def blocks_of(case: Case, variant: Variant) -> list[Block]:
    model, criterion, batch, parameters = case.build()
    objective, params = objective_of(model, criterion, parameters)
    return list(variant.build().blocks(objective, params, batch))


@each_pair(computed)
def test_blocks_cover_the_lower_triangle_exactly_once(case: Case, variant: Variant) -> None:
    count = torch.zeros(num_weights(case), num_weights(case))
    for block in blocks_of(case, variant):
        assert block.values.shape == count[block.rows, block.cols].shape
        assert block.values.shape == (block.rows.stop - block.rows.start, block.cols.stop - block.cols.start)
        assert not block.values.requires_grad
        count[block.rows, block.cols] += 1
    assert torch.equal(count.tril(), torch.ones_like(count).tril())


@each_pair(computed)
def test_agrees_with_finite_differences(case: Case, variant: Variant) -> None:
    dense = assemble(blocks_of(case, variant), num_weights(case))
    expected, tolerance = differences(case)
    assert dense.dtype == torch.float64
    assert torch.equal(dense, dense.T)
    assert (dense - expected).abs().max() <= tolerance + declared(variant.build()) * float(expected.norm())


@each_pair([(case, variant) for case, variant in computed if case.double_backward])
def test_agrees_with_double_backward_to_rounding(case: Case, variant: Variant) -> None:
    dense = assemble(blocks_of(case, variant), num_weights(case))
    expected, relative = reference(case), declared(variant.build())
    allowed = 1e-10 * float(expected.abs().max())
    if relative:  # where the matrix is zero, differences are nothing but rounding
        allowed += relative * float(expected.norm()) + differences(case).tolerance
    assert (dense - expected).abs().max() <= allowed


@each_pair(refused)
def test_refuses_in_one_line(case: Case, variant: Variant) -> None:
    with pytest.raises(PipelineError, match="use ") as caught:
        blocks_of(case, variant)
    assert "\n" not in str(caught.value)


def test_khatri_rao_takes_products_where_the_case_says_so() -> None:
    """Else sizes of them must be tested there, too."""
    takes = []
    for case in CASES:
        model, criterion, batch, parameters = case.build()
        objective, params = objective_of(model, criterion, parameters)
        if set(KhatriRao()._nets(objective, params, batch)[0].names) != set(params):
            takes.append(case.id)
    assert takes == [case.id for case in CASES if case.takes_products]


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.double_backward], ids=lambda case: case.id
)
def test_double_backward_of_the_plain_module_is_missing_or_wrong(case: Case) -> None:
    """Else the case must be compared with it, too."""
    try:
        found = double_backward(case.build())
    except RuntimeError:
        return
    expected, tolerance = differences(case)
    assert (found - expected).abs().max() > 1000 * tolerance


@each_case
def test_finite_differences_are_sharp(case: Case) -> None:
    """The tolerance derived above is no excuse: it is a millionth of the matrix, and nothing where that is zero."""
    expected, tolerance = differences(case)
    scale = (reference(case) if case.double_backward else expected).abs().max()
    assert tolerance <= 1e-6 * scale or (scale == 0 and expected.abs().max() <= tolerance < 1e-9)
