"""Blocks of a layer and the Fisher matrix, against differences of the loss and of log-probabilities in NumPy."""

import numpy as np
import pytest
import torch

from pipeline.law import PiecewiseLinear, piecewise_linear
from pipeline.law.nets import perceptron

SMALL = PiecewiseLinear(seed=2, num_samples=4, size=4, hidden_size=3, num_classes=3)


def test_the_law_holds(held):
    outcome = SMALL.measure(None)
    assert all(held(outcome).values()), outcome.checks


def test_it_is_not_held_by_wrong_matrices(monkeypatch, held):
    """A GGN whose diagonal has an error."""
    right = piecewise_linear.matrix

    def wrong(*arguments):
        found = right(*arguments).clone()
        if arguments[-1] == "ggn":
            found[2, 2] += 1e-4 * found.abs().max()
        return found

    monkeypatch.setattr(piecewise_linear, "matrix", wrong)
    found = held(SMALL.measure(None))
    assert not any(found[f"relu_{name}"] for name in ("blocks", "diagonal", "trace"))
    assert not found["zero_residual"]
    assert not found["fisher"]


def log_probabilities(flat, X):
    A, a, B, b = np.split(flat, np.cumsum([6, 3, 9]))
    outputs = np.maximum(X @ A.reshape(3, 2).T + a, 0) @ B.reshape(3, 3).T + b
    return outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))


@pytest.fixture
def net_and_inputs():
    torch.manual_seed(5)
    return perceptron([2, 3, 3], torch.nn.ReLU()), torch.randn(4, 2, dtype=torch.float64)


def test_the_fisher_matrix_is_that_of_differences(net_and_inputs):
    net, inputs = net_and_inputs
    flat = torch.cat([each.detach().flatten() for each in net.parameters()]).numpy()
    step = 1e-6 * np.eye(len(flat))
    slopes = np.array(
        [
            (log_probabilities(flat + each, inputs.numpy()) - log_probabilities(flat - each, inputs.numpy()))
            / 2e-6
            for each in step
        ]
    )  # (P, N, C)
    p = np.exp(log_probabilities(flat, inputs.numpy()))
    expected = np.einsum("nc,inc,jnc->ij", p, slopes, slopes) / len(p)
    np.testing.assert_allclose(piecewise_linear.fisher(net, inputs).numpy(), expected, atol=1e-9)


def test_blocks_of_a_layer_are_those_of_differences_of_the_loss(net_and_inputs):
    """Entries of H are differences of the loss; those of the Gauss-Newton matrix too, within a layer."""
    net, inputs = net_and_inputs
    labels = torch.tensor([0, 2, 1, 1])
    pair = piecewise_linear.Pair.of(net, inputs, labels)
    flat = torch.cat([each.detach().flatten() for each in net.parameters()]).numpy()

    def loss(weights):
        return -log_probabilities(weights, inputs.numpy())[np.arange(4), labels.numpy()].mean()

    units = 1e-4 * np.eye(len(flat))
    signs = [(s, t) for s in (1, -1) for t in (1, -1)]
    for i, j in [(0, 1), (3, 7), (9, 12), (2, 20), (5, 10)]:
        difference = sum(s * t * loss(flat + s * units[i] + t * units[j]) for s, t in signs) / 4e-8
        assert float(pair.H[i, j]) == pytest.approx(difference, abs=1e-6)
        if (i < 9) == (j < 9):  # of one layer
            assert float(pair.G[i, j]) == pytest.approx(difference, abs=1e-6)
