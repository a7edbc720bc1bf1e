"""Noise of SGD at rest, against simulations; gradients of samples, against the mean loss; steps, against torch's."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.law import TinySubspace, tiny_subspace
from pipeline.law.nets import gradient, perceptron
from pipeline.law.tiny_subspace import CROSS_ENTROPY, noise_law, sample_gradients

SMALL = TinySubspace(
    seed=0,
    num_samples=200,
    hidden_size=6,
    learning_rate=0.35,
    batch_size=8,
    num_steps=400,
    num_measurements=4,
    num_averaged=60,
)


@pytest.fixture
def made():
    torch.manual_seed(1)
    net = perceptron([3, 4, 5], nn.Tanh())
    return net, torch.randn(12, 3, dtype=torch.float64), torch.randint(5, (12,))


@pytest.mark.parametrize("learning_rate", [0.05, 0.4])
def test_noise_at_rest_on_a_quadratic_loss(learning_rate):
    generator = np.random.default_rng(0)
    values, deviations = np.array([4.0, 1.0, 0.3]), np.array([1.0, 0.5, 2.0])
    w, squares = np.zeros((4000, 3)), np.zeros(3)
    for step in range(700):
        noise = deviations * generator.standard_normal(w.shape)
        w -= learning_rate * (values * w + noise)
        squares += ((values * w) ** 2).mean(axis=0) * (step >= 600) / 100
    assert noise_law(values, deviations**2, learning_rate) == pytest.approx(squares, rel=0.05)


def test_flat_directions_have_no_law():
    assert noise_law(np.array([2.0, 0.0, -1.0]), np.ones(3), 0.5).tolist() == [1.0, 0.0, 0.0]


def test_gradients_of_samples(made):
    net, inputs, targets = made
    rows = sample_gradients(net, inputs, targets)
    np.testing.assert_allclose(rows.mean(0), gradient(net, CROSS_ENTROPY, inputs, targets), atol=1e-14)
    np.testing.assert_allclose(rows[3], gradient(net, CROSS_ENTROPY, inputs[3:4], targets[3:4]), atol=1e-14)


def test_steps_are_those_of_sgd(made):
    net, inputs, targets = made
    other = perceptron([3, 4, 5], nn.Tanh())
    other.load_state_dict(net.state_dict())
    optimizer, squares = torch.optim.SGD(other.parameters(), SMALL.learning_rate), 0
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(41, 2)))[0]
    for _ in range(3):
        optimizer.zero_grad()
        CROSS_ENTROPY(other(inputs), targets).backward()
        optimizer.step()
        squares += (gradient(other, CROSS_ENTROPY, inputs, targets).numpy() @ vectors) ** 2 / 3
    found = SMALL._train(net, inputs, targets, None, 3, vectors)
    np.testing.assert_allclose(found, squares, rtol=1e-12)


def test_the_law_holds(held):
    outcome = SMALL.measure(None)
    assert all(held(outcome).values()), outcome.checks


def test_it_is_not_held_without_noise(monkeypatch, held):
    monkeypatch.setattr(TinySubspace, "_batch", lambda law, num_samples, size: torch.arange(num_samples))
    found = held(SMALL.measure(None))
    assert not any(found[key] for key in ("share", "law", "strength"))
    assert found["control"]


def test_it_is_not_held_in_another_eigenspace(monkeypatch, held):
    right = tiny_subspace._spectrum

    def wrong(*arguments):
        values, vectors = right(*arguments)
        return values, np.roll(vectors, 40, axis=1)

    monkeypatch.setattr(tiny_subspace, "_spectrum", wrong)
    found = held(SMALL.measure(None))
    assert not any(found[key] for key in ("share", "batch"))


def test_more_measurements_than_steps_are_refused():
    with pytest.raises(PipelineError, match=r"law\.num_measurements=10, of 4 steps: give fewer"):
        TinySubspace(seed=0, num_steps=4)
