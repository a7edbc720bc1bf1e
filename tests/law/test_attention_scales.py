"""Blocks of self-attention, against automatic derivatives of attention that is written out by hand."""

import numpy as np
import pytest
import torch

from pipeline.law import AttentionScales, attention_scales
from pipeline.law.attention_scales import SelfAttention, blocks_of, leading_blocks

SMALL = AttentionScales(seed=1, num_samples=2, num_tokens=4, width=3, head_width=2, num_layers=2)


@pytest.fixture(scope="module")
def outcome():
    return SMALL.measure(None)


def by_hand(X, Y, query, key, value):
    """Outer and functional block of the query and the value weight, (in, out), of ½ ‖F − Y‖² / N."""

    def predict(q, v):
        scores = torch.einsum("nip,pr,qr,njq->nij", X, q, key, X) / query.shape[1] ** 0.5
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        return torch.einsum("nij,njp,pc->nic", weights, X, v)

    found = []
    for place in (1, 0):
        J = torch.func.jacrev(predict, place)(query, value)
        J = J.reshape(Y.numel(), -1)
        outer = J.T @ J / len(X)

        def loss(q, v):
            return (predict(q, v) - Y).square().sum() / (2 * len(X))

        H = torch.func.hessian(loss, place)(query, value).reshape(outer.shape)
        found += [outer, H - outer]
    return found


@pytest.fixture
def net():
    torch.manual_seed(5)
    return SelfAttention(3, 2, 1, is_linear=False)


def transposed(matrix, weight):
    """The matrix of a weight (out, in), in the order of (in, out)."""
    rows, columns = weight.shape
    return matrix.reshape(rows, columns, rows, columns).permute(1, 0, 3, 2).reshape(matrix.shape)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_blocks_are_those_of_attention_by_hand(net, scale):
    X, Y = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    query, key, value = (net.layers[0][name].weight.detach() for name in ("query", "key", "value"))
    expected = by_hand(scale * X, Y, query.T, key.T, value.T)
    weights = value, value, query, query
    for given, wanted, weight in zip(blocks_of(net, scale * X, Y), expected, weights, strict=True):
        torch.testing.assert_close(transposed(given, weight), wanted, rtol=1e-6, atol=1e-12 * scale**2)
    if scale == 0.01:
        limits = leading_blocks(net, scale * X, Y)
        for limit, wanted, weight in zip(limits, expected, weights, strict=True):
            assert (transposed(limit, weight) - wanted).norm() <= 0.03 * wanted.norm() + 1e-15


def test_the_law_holds(outcome):
    assert outcome.held, outcome.checks
    expected = {check.key: check.expected for check in outcome.checks}
    assert expected["linear_outer_1"] == 6
    assert expected["linear_outer_2"] == 18
    measured = {check.key: check.measured for check in outcome.checks}
    assert measured["query_functional_limit"] > 0


def test_it_is_not_held_by_wrong_matrices(monkeypatch):
    right = attention_scales._matrix

    def wrong(*arguments):
        found = right(*arguments)
        return found + 1e-4 * torch.eye(len(found), dtype=found.dtype)

    monkeypatch.setattr(attention_scales, "_matrix", wrong)
    held = {check.key: check.held for check in SMALL.measure(None).checks}
    assert not held["query_outer"]
    assert not held["query_outer_limit"]
    assert not held["linear_outer_1"]


def test_a_scale_has_its_exponent():
    scales = np.array([1.0, 3.0])
    assert attention_scales.exponent(scales, 2 * scales**5) == pytest.approx(5)
