"""The catapult, against gradient descent with gradients by hand."""

import numpy as np
import pytest
import torch

from pipeline.law import Catapult, catapult
from pipeline.law.catapult import LinearNet, descend, gauss_newton_eigenvalue, recursion, sharpness

SMALL = Catapult(seed=2, width=300, num_steps=300)


@pytest.fixture(scope="module")
def outcome():
    return SMALL.measure(None)


@pytest.fixture
def net():
    torch.manual_seed(4)
    return LinearNet(50)


def by_hand(u, v, rate, num_steps):
    """Outputs f and curvatures (‖u‖² + ‖v‖²) / n of gradient descent on ½ f²."""
    root = np.sqrt(len(u))
    path = []
    for _ in range(num_steps + 1):
        f = u @ v / root
        path.append((f, (u @ u + v @ v) / len(u)))
        u, v = u - rate * f * v / root, v - rate * f * u / root
    return np.array(path).T


@pytest.mark.parametrize("scaled_rate", [1.0, 3.0])
def test_training_and_the_recursion_are_gradient_descent_by_hand(net, scaled_rate):
    u, v = (weight.detach().numpy().copy() for weight in net.parameters())
    first = (u @ u + v @ v) / 50
    assert gauss_newton_eigenvalue(net) == pytest.approx(first, rel=1e-12)
    rate = scaled_rate / first
    outputs, curvatures = by_hand(u, v, rate, 60)
    path = recursion(u @ v / 50**0.5, first, 50, rate, 60)
    np.testing.assert_allclose(path, [outputs, curvatures], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(descend(net, rate, 60), outputs**2 / 2, rtol=1e-6, atol=1e-12)
    assert sharpness(net) == pytest.approx(curvatures[-1], rel=1e-5)


def test_the_law_holds(outcome):
    assert outcome.held, outcome.checks
    ends = outcome.panels[1].series[0]
    assert min(ends.y[ends.x > 2]) < 0.5


def test_training_that_diverges_ends_early(net):
    losses = descend(net, 6 / gauss_newton_eigenvalue(net), 1000)
    assert len(losses) < 100
    assert losses[-1] > 1e12 * losses[0]


def test_it_is_not_held_by_half_the_learning_rate(monkeypatch):
    monkeypatch.setattr(catapult, "descend", lambda net, rate, steps: descend(net, rate / 2, steps))
    held = {check.key: check.held for check in SMALL.measure(None).checks}
    assert not held["catapult_border"]
    assert not held["divergence_border"]
    assert not held["recursion"]
