"""The matrix of each batch of an operator, against the dense matrix of that batch alone."""

import numpy as np
import pytest
import torch
from support.operator_cases import classes, cut
from torch import nn

import pipeline
from pipeline.errors import PipelineError
from pipeline.operator import batch_sum, curvature_operator, operators_of_batches

SIZES = (2, 13, 8)
WEIGHTED = {"weight": torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64), "ignore_index": 0}
IGNORED = 0


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "fresh"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_each_is_the_matrix_of_the_batch_alone_and_they_add_up(reduction, matrix, is_kept, monkeypatch):
    if not is_kept:
        monkeypatch.setattr(batch_sum, "available_memory", lambda: 0)
    model, pair = classes()
    criterion = nn.CrossEntropyLoss(**WEIGHTED, reduction=reduction)
    given = cut(pair, *SIZES)
    operator = curvature_operator(
        model, criterion, given, matrix, way=None if is_kept else "reverse over reverse"
    )
    whole = pipeline.hessian(model, criterion, *pair, matrix=matrix)
    vectors = torch.randn(len(whole), 3, dtype=torch.float64)
    before = operator @ vectors
    found = operators_of_batches(operator)
    total = torch.zeros_like(whole)
    for each, weight, batch in zip(found.operators, found.weights, given, strict=True):
        dense = pipeline.hessian(model, criterion, *batch, matrix=matrix)
        torch.testing.assert_close(each @ vectors, dense @ vectors, rtol=1e-11, atol=1e-12)
        loss, gradient = each.loss_and_gradient()
        own = criterion(model(batch[0]), batch[1])
        assert loss == pytest.approx(float(own.detach()), rel=1e-12)
        of_module = torch.cat([g.flatten() for g in torch.autograd.grad(own, model.parameters())])
        torch.testing.assert_close(gradient, of_module, rtol=1e-10, atol=1e-12)
        total += weight * dense
    torch.testing.assert_close(total, whole, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(operator @ vectors, before, rtol=0, atol=0)
    expected = [1.0] * 3 if reduction == "mean" else [sum(SIZES) / size for size in SIZES]
    np.testing.assert_allclose(found.scales, expected)


def test_graphs_of_all_batches_are_kept_in_the_memory_of_those_of_the_sum(monkeypatch):
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, 8, 8, 7))
    graph = operator._sum.bytes_of_a_graph
    operator._sum.kept.clear()
    for share, is_kept in ((3.5, True), (2.5, False)):
        monkeypatch.setattr(
            batch_sum, "available_memory", lambda share=share: int(share * batch_sum.SHARE * graph)
        )
        singles = [each._sum for each in operators_of_batches(operator).operators]
        assert [single.is_kept for single in singles] == [is_kept] * 3
        assert all("problem" not in vars(single) for single in singles)


def test_a_batch_without_terms_has_no_matrix():
    model, (inputs, targets) = classes()
    targets[2:15] = IGNORED
    operator = curvature_operator(model, nn.CrossEntropyLoss(**WEIGHTED), cut((inputs, targets), *SIZES))
    with pytest.raises(PipelineError, match="batch 1 has no label that counts, and so no mean loss"):
        operators_of_batches(operator)
