"""Which part of the matrix is computed: what the savings of `triangular`, `hvp` and `func` rest on."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import torch
from support.cases import CASES, Case

from pipeline.layout import Layout
from pipeline.objective.objective import objective_of
from pipeline.strategy.loss_chunks import weighted_chunks
from pipeline.strategy.parameter_pairs import columns_of, rows_of, unit_vectors

CASE = {case.id: case for case in CASES}


def params_of(**sizes: int) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(size) for name, size in sizes.items()}


def test_each_pair_of_parameters_is_differentiated_once() -> None:
    params = params_of(a=2, b=30, c=30, d=1, e=8)
    found = [
        tuple(sorted((row, column))) for row, columns in columns_of(params).items() for column in columns
    ]
    assert sorted(found) == sorted(combinations_with_replacement("abcde", 2))


def test_rows_of_the_largest_parameter_need_no_other_one() -> None:
    params = params_of(bias=2, weight=30, last=8)
    assert {name: sorted(columns) for name, columns in columns_of(params).items()} == {
        "weight": ["weight"],
        "last": ["last", "weight"],
        "bias": ["bias", "last", "weight"],
    }


def test_rows_are_cut_within_their_parameter() -> None:
    layout = Layout.of(params_of(a=3, b=7))
    assert rows_of(layout, "a", 4) == [slice(0, 3)]
    assert rows_of(layout, "b", 3) == [slice(3, 6), slice(6, 9), slice(9, 10)]


def test_unit_vectors() -> None:
    found = unit_vectors(torch.zeros(2, 3, dtype=torch.float64), 1, 5)
    assert torch.equal(found, torch.eye(6, dtype=torch.float64)[1:5].reshape(4, 2, 3))
    assert torch.equal(unit_vectors(torch.tensor(3.0), 0, 1), torch.ones(1))


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        (CASE["mlp-relu"], [3 / 7, 3 / 7, 1 / 7]),
        (CASE["mlp-tanh-sum"], [1, 1, 1]),
        (CASE["dict-outputs"], [3 / 7, 3 / 7, 1 / 7]),
        (CASE["no-residual"], [3 / 7, 3 / 7, 1 / 7]),
        (CASE["no-residual-sum"], [1, 1, 1]),
        (CASE["class-weights"], [1]),
        (CASE["class-weights-close"], [1]),
        (CASE["ignored-labels"], [1]),
        (CASE["coupled-samples"], [1]),
    ],
    ids=lambda value: value.id if isinstance(value, Case) else "",
)
def test_weights_of_chunks_are_read_off_the_criterion(case: Case, weights: list[float]) -> None:
    model, criterion, batch, parameters = case.build()
    objective, params = objective_of(model, criterion, parameters)
    chunks = weighted_chunks(objective, params, batch, 3)
    assert [weight for weight, _ in chunks] == pytest.approx(weights, rel=1e-14)
    assert sum(chunk.num_samples for _, chunk in chunks) == 7
