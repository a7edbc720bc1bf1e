"""Ratios of blocks, against loops in NumPy and draws of the second layer."""

import numpy as np
import pytest
import torch

from pipeline.law import ClassBlocks, class_blocks

SMALL = ClassBlocks(
    seed=1, num_classes=(2, 8, 32, 128), num_samples=40, dimension=3, num_hidden=4, num_draws=12
)


def test_the_law_holds(held):
    outcome = SMALL.measure(None)
    assert all(held(outcome).values()), outcome.checks


def test_it_is_not_held_by_wrong_matrices(wrong, held):
    wrong(class_blocks, lambda matrix: matrix + 0.02 * matrix.abs().max())
    found = held(SMALL.measure(None))
    assert not any(found[name] for name in ("regression", "last_layer", "hidden_squared_error"))


def test_norms_of_blocks():
    matrix = torch.arange(16.0).reshape(4, 4)
    expected = [[np.sqrt(0 + 1 + 16 + 25), np.sqrt(4 + 9 + 36 + 49)], [np.sqrt(64 + 81 + 144 + 169), None]]
    found = class_blocks._norms(matrix, 2)
    assert found[0] == pytest.approx(expected[0])
    assert found[1, 0] == pytest.approx(expected[1][0])
    off, on = class_blocks._mean_squares(matrix, 2)
    assert off == pytest.approx((found[0, 1] ** 2 + found[1, 0] ** 2) / 2)
    assert on == pytest.approx((found[0, 0] ** 2 + found[1, 1] ** 2) / 2)


@pytest.mark.parametrize("C", [2, 3, 7])
def test_regression_at_zero_by_the_formula(C):
    """Blocks of (1/N) Σ (diag p − ppᵀ) ⊗ xxᵀ at p = 1/C, by loops."""
    X = np.random.default_rng(0).normal(size=(5, 3))
    p = np.full(C, 1 / C)
    blocks = [
        [sum((p[i] * (i == j) - p[i] * p[j]) * np.outer(x, x) for x in X) for j in range(C)] for i in range(C)
    ]
    ratio = np.linalg.norm(blocks[0][1]) / np.linalg.norm(blocks[0][0])
    assert ratio == pytest.approx(1 / (C - 1))
    assert class_blocks.regression_ratios(torch.from_numpy(X), C) == pytest.approx((ratio, ratio))


def test_hidden_blocks_over_draws_of_the_second_layer():
    """E ‖H_ik‖² / E ‖H_ii‖² = ρ / (C + 2) for squared error: H_ik = (v_i · v_k) G_ik, by 20,000 draws of v."""
    generator = np.random.default_rng(3)
    X, W, C = generator.normal(size=(30, 3)), generator.normal(size=(4, 3)), 5
    active = X @ W.T > 0
    G = np.array(
        [
            [
                sum(np.outer(x, x) for x, on in zip(X, active, strict=True) if on[i] and on[k])
                + np.zeros((3, 3))
                for k in range(4)
            ]
            for i in range(4)
        ]
    )
    V = generator.normal(size=(20_000, C, 4))
    products = np.einsum("sci,sck->sik", V, V)
    squares = (products**2).mean(axis=0) * (G**2).sum(axis=(2, 3))
    diagonal = np.eye(4, dtype=bool)
    ratio = squares[~diagonal].mean() / squares[diagonal].mean()
    predicted = class_blocks.overlap(torch.from_numpy(W), torch.from_numpy(X)) / (C + 2)
    assert ratio == pytest.approx(predicted, rel=0.03)
