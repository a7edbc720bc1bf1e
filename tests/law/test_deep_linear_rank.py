"""Ranks of linear nets, against exact arithmetic: derivatives of a polynomial in whole numbers, and elimination."""

from itertools import pairwise

import numpy as np
import pytest
import sympy
import torch

from pipeline.errors import PipelineError
from pipeline.law import DeepLinearRank, deep_linear_rank
from pipeline.law.deep_linear_rank import Rank, formulas

SMALL = DeepLinearRank(seed=0, architectures=("3-4-2", "6-2-6-4", "2-5-5-5-2"), num_samples=(2, 9))


def exact_ranks(widths, num_samples, seed):
    """Of H, H_o and H_f by whole numbers: the loss is a polynomial of the weights."""
    generator = np.random.default_rng(seed)

    def whole(*shape):
        return generator.integers(-9, 10, size=shape)

    names, values, matrices = [], {}, []
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        W = sympy.Matrix(outputs, inputs, lambda i, j, layer=layer: sympy.Symbol(f"w{layer}_{i}_{j}"))
        names += list(W)
        values |= dict(zip(W, map(int, whole(outputs * inputs)), strict=True))
        matrices.append(W)
    product = matrices[0]
    for W in matrices[1:]:
        product = W * product
    H, H_o = sympy.zeros(len(names)), sympy.zeros(len(names))
    for _ in range(num_samples):
        x, y = (sympy.Matrix(whole(size).tolist()) for size in (widths[0], widths[-1]))
        f = product * x
        J = f.jacobian(names).subs(values)
        H_o += J.T * J
        H += sympy.hessian((f - y).dot(f - y) / 2, names).subs(values)
    return H.rank(), H_o.rank(), (H - H_o).rank()


@pytest.mark.parametrize(
    ("widths", "num_samples"),
    [((2, 3, 2), 3), ((3, 2, 3), 1), ((2, 2, 1, 2), 3), ((2, 2, 2, 2), 2), ((3, 1, 2), 4), ((2, 3, 1), 3)],
)
def test_the_formulas_are_the_ranks_in_exact_arithmetic(widths, num_samples):
    assert exact_ranks(widths, num_samples, seed=1) == formulas(widths, num_samples)


def test_the_law_holds(held):
    outcome = SMALL.measure(None)
    assert all(held(outcome).values()), outcome.checks


def test_it_is_not_held_by_wrong_matrices(wrong, held):
    wrong(deep_linear_rank)
    found = held(SMALL.measure(None))
    assert not any(found[f"{name}_ranks"] for name in ("hessian", "ggn", "residual"))


def test_the_rank_of_known_singular_values():
    Q, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    rank = Rank.of(Q @ torch.diag(torch.tensor([3.0, -2.0, 1e-3, 0.0, 0.0], dtype=torch.float64)) @ Q.T)
    assert rank.count == 3
    assert rank.gap > 1e10
    assert Rank.of(torch.zeros(2, 2)).count == 0


def test_widths_are_whole_numbers():
    with pytest.raises(PipelineError, match="architectures"):
        DeepLinearRank(seed=0, architectures=("3-x-2",))
