"""Sums over parts of the batches add up to the matrix of all samples, whatever the parts are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.operator_cases import classes, cut
from torch import nn

import pipeline
from pipeline.matrix import GGN, Hessian
from pipeline.objective import Batch
from pipeline.operator import PartialSum, batch_sum, curvature_operator, parts_of, split_evenly, sum_of_parts

SIZES = (2, 13, 3, 5)
WEIGHTED = {"weight": torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64), "ignore_index": 0}


def in_parts(model, criterion, batches, matrix, num_parts, change=lambda part: part):
    """The operator whose products are added from parts, as other processes would compute them."""
    operator = curvature_operator(model, criterion, batches, matrix)
    parts = [change(part) for part in parts_of(operator, num_parts)]
    given = [Batch.of(*pair) for pair in batches]
    sums = [PartialSum.of(part, model, criterion, given, operator._sum.matrix) for part in parts]
    return sum_of_parts(operator, parts, lambda vectors: [each(vectors) for each in sums])


@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("matrix", [Hessian(), GGN()])
@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(**WEIGHTED),
        nn.CrossEntropyLoss(**WEIGHTED, reduction="sum"),
        lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="sum") / 7,
    ],
    ids=["mean", "sum", "own-sum"],
)
def test_parts_add_up_to_the_matrix_of_all_samples(criterion, matrix, num_parts):
    model, pair = classes()
    pair[1][15:18] = 0  # nothing counts in the third batch, where 0 is ignored
    whole = pipeline.hessian(model, criterion, *pair, matrix=matrix)
    operator = in_parts(model, criterion, cut(pair, *SIZES), matrix, num_parts)
    vectors = torch.randn(len(whole), 3, dtype=torch.float64)
    torch.testing.assert_close(operator @ vectors, whole @ vectors, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator @ vectors[:, 0], whole @ vectors[:, 0], rtol=1e-12, atol=1e-12)
    loss, _ = operator.loss_and_gradient()
    assert loss == pytest.approx(float(criterion(model(pair[0]), pair[1]).detach()), rel=1e-12)
    assert operator.num_products == 4


def test_a_wrong_weight_is_a_wrong_product():
    """So that the test above would see one."""
    model, pair = classes()
    whole = pipeline.hessian(model, nn.CrossEntropyLoss(), *pair)

    def heavier(part):
        return (
            replace(part, weights=tuple(1.01 * weight for weight in part.weights))
            if 0 in part.indices
            else part
        )

    operator = in_parts(model, nn.CrossEntropyLoss(), cut(pair, *SIZES), Hessian(), 2, heavier)
    ones = torch.ones(len(whole), dtype=torch.float64)
    assert float((operator @ ones - whole @ ones).norm()) > 1e-4 * float((whole @ ones).norm())


def test_graphs_are_kept_by_parts_and_not_by_the_whole():
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, *SIZES), way="reverse over reverse")
    whole = operator._sum
    operator @ np.ones(operator.num_rows)
    assert len(whole.kept) == 4
    parts = parts_of(operator, 2)
    given = [Batch.of(*each) for each in cut(pair, *SIZES)]
    sums = [PartialSum.of(part, model, nn.CrossEntropyLoss(), given, Hessian()) for part in parts]
    dealt = sum_of_parts(operator, parts, lambda vectors: [each(vectors) for each in sums])
    dealt @ np.ones(operator.num_rows)
    assert not whole.kept
    assert [len(each.total.kept) for each in sums] == [1, 3]


def test_a_part_keeps_no_graphs_that_its_share_of_the_memory_does_not_hold(monkeypatch):
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, *SIZES), way="reverse over reverse")
    (part,) = parts_of(operator, 1)
    given = [Batch.of(*each) for each in cut(pair, *SIZES)]
    about = (part, model, nn.CrossEntropyLoss(), given, Hessian(), None)
    needed = 4 * operator._sum.bytes_of_a_graph
    monkeypatch.setattr(batch_sum, "available_memory", lambda: 4 * 2 * needed)
    vectors, found = np.random.default_rng(0).standard_normal((operator.num_rows, 2)), []
    for share, kept in ((1.0, 4), (0.4, 0)):
        partial = PartialSum.of(*about, share=share)
        found.append(partial(vectors))
        assert len(partial.total.kept) == kept
    np.testing.assert_array_equal(*found)


def test_a_way_is_taken_by_its_name_whether_or_not_graphs_are_kept(monkeypatch):
    model, pair = classes()
    kept = curvature_operator(model, nn.CrossEntropyLoss(), pair, way="reverse over reverse")
    assert kept.way == "reverse over reverse, graph kept"
    monkeypatch.setattr(batch_sum, "available_memory", lambda: 100)
    fresh = curvature_operator(model, nn.CrossEntropyLoss(), pair, way=kept.way)
    assert fresh.way == "reverse over reverse"


@pytest.mark.parametrize(
    ("sizes", "num_parts", "parts"),
    [
        ([8, 8, 8, 8, 3], 2, [(0, 2, 4), (1, 3)]),
        ([2, 13, 3, 5], 2, [(1,), (0, 2, 3)]),
        ([4, 4], 1, [(0, 1)]),
        ([0, 0, 0], 3, [(0,), (1,), (2,)]),
    ],
)
def test_batches_are_split_by_their_samples(sizes, num_parts, parts):
    assert split_evenly(sizes, num_parts) == parts
