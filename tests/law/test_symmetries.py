"""The symmetries themselves, by the loss alone; and that broken ones are found out."""

import pytest
import torch
from torch import nn

from pipeline.law import Symmetries, symmetries
from pipeline.law.nets import normal, perceptron

SMALL = Symmetries(seed=4, num_samples=6, dimension=3, hidden_size=4, num_classes=3)


@pytest.fixture
def problem():
    torch.manual_seed(1)
    net = perceptron([3, 4, 3], nn.ReLU())
    return net, normal(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])


def test_the_law_holds(held):
    outcome = SMALL.measure(None)
    assert all(held(outcome).values()), outcome.checks


def test_it_is_not_held_by_wrong_matrices(wrong, held):
    wrong(symmetries)
    found = held(SMALL.measure(None))
    names = ("rescaled_hessian", "unit_curvature", "euler", "shift_null", "norm_curvature")
    assert not any(found[name] for name in names)


def test_it_is_not_held_by_what_is_no_symmetry(monkeypatch, held):
    """Outgoing weights that grow with the incoming ones, and a norm that is none."""
    right = symmetries.generator
    monkeypatch.setattr(symmetries, "generator", lambda net, unit: right(net, unit).abs())
    monkeypatch.setattr(nn, "LayerNorm", lambda size, eps: nn.Identity())
    found = held(SMALL.measure(None))
    assert not any(found[name] for name in ("unit_slopes", "unit_curvature", "norm_slope", "norm_curvature"))


def test_a_rescaled_net_is_the_same_function(problem):
    net, inputs, _ = problem
    other = symmetries.rescaled(net, torch.tensor([0.5, 2.0, 3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(other(inputs), net(inputs))
    assert not torch.equal(next(other.parameters()), next(net.parameters()))


def test_the_generator_is_the_derivative_of_rescaling(problem):
    net, *_ = problem
    for unit in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[unit] = 1e-6
        flat = [
            torch.cat(
                [each.detach().flatten() for each in symmetries.rescaled(net, torch.exp(t)).parameters()]
            )
            for t in (step, -step)
        ]
        theta = torch.cat([each.detach().flatten() for each in net.parameters()])
        torch.testing.assert_close(
            (flat[0] - flat[1]) / 2e-6, symmetries.generator(net, unit) * theta, atol=1e-8, rtol=0
        )


def test_the_point_against_differences_of_the_loss(problem):
    """Curvature along Dθ is that of the loss on the way there, by three values of it."""
    net, inputs, labels = problem
    point = symmetries.Point.of(net, inputs, labels)
    direction = symmetries.generator(net, 2) * point.theta

    def loss(t):
        nn.utils.vector_to_parameters(point.theta + t * direction, net.parameters())
        return float(nn.functional.cross_entropy(net(inputs), labels).detach())

    step = 1e-4
    curvature = (loss(step) - 2 * loss(0.0) + loss(-step)) / step**2
    assert float(direction @ point.H @ direction) == pytest.approx(curvature, abs=1e-6)
    assert float(-direction @ (symmetries.generator(net, 2) * point.g)) == pytest.approx(curvature, abs=1e-6)
