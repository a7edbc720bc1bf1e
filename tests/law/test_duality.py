"""Duality, against a Jacobian that is written out by hand, and softmax regression, against differences of its loss."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.law import Duality, duality

SMALL = Duality(seed=3, num_samples=5, dimension=3, hidden_size=4, num_classes=3)


@pytest.fixture(scope="module")
def outcome():
    return SMALL.measure(None)


def softmax(outputs):
    powers = np.exp(outputs - outputs.max())
    return powers / powers.sum()


def test_the_law_holds(outcome):
    assert outcome.held, outcome.checks
    assert outcome.checks[2].expected == 10  # N (C − 1)


def test_it_is_not_held_by_wrong_matrices(wrong):
    wrong(duality)
    held = {check.key: check.held for check in SMALL.measure(None).checks}
    assert not held["dual_eigenvalues"]
    assert not held["gram_eigenvalues"]
    assert not held["softmax_hessian"]


def test_eigenvalues_are_those_of_a_jacobian_by_hand(outcome):
    torch.manual_seed(3)
    X, _ = torch.randn(5, 3, dtype=torch.float64).numpy(), torch.randint(3, (5,))
    layers = [nn.Linear(*sizes, dtype=torch.float64) for sizes in ((3, 4), (4, 3))]
    A, a, B, b = (each.detach().numpy() for layer in layers for each in layer.parameters())
    total = np.zeros((12 + 4 + 12 + 3, 12 + 4 + 12 + 3))
    for x in X:
        h = np.tanh(A @ x + a)
        inner = B * (1 - h**2)  # (C, hidden): by the sums of the hidden layer
        rows = [
            np.concatenate(
                [np.outer(inner[c], x).ravel(), inner[c], np.outer(np.eye(3)[c], h).ravel(), np.eye(3)[c]]
            )
            for c in range(3)
        ]
        p = softmax(B @ h + b)
        total += np.array(rows).T @ (np.diag(p) - np.outer(p, p)) @ np.array(rows) / len(X)
    expected = np.linalg.eigvalsh(total)[::-1][:10]
    for series in outcome.panels[0].series:
        np.testing.assert_allclose(series.y, expected, rtol=1e-9)


def test_softmax_regression_against_differences_of_the_loss():
    generator = np.random.default_rng(0)
    X, W, labels = generator.normal(size=(6, 3)), generator.normal(size=(4, 3)), generator.integers(4, size=6)

    def loss(flat):
        return -np.mean([np.log(softmax(flat.reshape(4, 3) @ x)[y]) for x, y in zip(X, labels, strict=True)])

    step, units = 1e-4, np.eye(12) * 1e-4
    H = [
        [
            sum(s * t * loss(W.ravel() + s * units[i] + t * units[j]) for s in (1, -1) for t in (1, -1))
            / (4 * step**2)
            for j in range(12)
        ]
        for i in range(12)
    ]
    given = duality.softmax_regression(torch.from_numpy(W), torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(given, H, atol=1e-6)
