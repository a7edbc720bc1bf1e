"""Edges of optimizers, against a quadratic loss; Adam's preconditioner, against its recursion by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.law import OptimizerEdges
from pipeline.law.optimizer_edges import PreconditionedOperator, adam_preconditioner
from pipeline.operator import curvature_operator
from pipeline.spectrum import eigenpairs

LAW = OptimizerEdges(seed=0, heavy_ball_rate=0.3, nesterov_rate=0.2, momentum=0.8, adam_rate=0.01)


def spectral_radius(curvature, rate, momentum, dampening=0.0):
    """Of one step of (w, v) on ½ λ w²: v ← β v + (1 − dampening) λ w, w ← w − η v."""
    gradient = (1 - dampening) * curvature
    step = np.array([[1 - rate * gradient, -rate * momentum], [gradient, momentum]])
    return np.abs(np.linalg.eigvals(step)).max()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("factor", "grows"), [(0.99, False), (1.01, True)])
def test_steps_grow_above_the_edge_alone(place, factor, grows):
    method = LAW.methods()[place]
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = method.make([weight])
    for _ in range(2000):
        optimizer.zero_grad()
        (factor * method.edge * weight.square().sum() / 2).backward()
        optimizer.step()
    assert (abs(weight.item()) > 1e3) == grows
    assert (abs(weight.item()) < 1e-3) != grows


def test_edges_are_where_the_spectral_radius_is_one():
    heavy, _, adam = LAW.methods()
    for factor, grows in ((0.999, False), (1.001, True)):
        assert (spectral_radius(factor * heavy.edge, 0.3, 0.8) > 1) == grows
        assert (spectral_radius(factor * adam.edge, 0.01, 0.9, dampening=0.9) > 1) == grows
    assert adam.edge == pytest.approx(38 / 0.01)


def test_the_preconditioner_is_that_of_adam():
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(7, 6))
    weights = [nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)), nn.Parameter(torch.zeros(2).double())]
    optimizer = LAW.methods()[2].make(weights)
    mean, square, w = np.zeros(6), np.zeros(6), np.zeros(6)
    for step, gradient in enumerate(gradients, start=1):
        weights[0].grad = torch.from_numpy(gradient[:4].reshape(2, 2).copy())
        weights[1].grad = torch.from_numpy(gradient[4:].copy())
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        P = (1 - 0.9**step) * (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        w = w - 0.01 * mean / P
    np.testing.assert_allclose(adam_preconditioner(optimizer), P, rtol=1e-10)
    np.testing.assert_allclose(torch.cat([each.detach().flatten() for each in weights]), w, rtol=1e-10)


def test_preconditioned_products_have_the_eigenvalues_of_the_quotient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    operator = curvature_operator(net, nn.MSELoss(), (inputs, targets))
    P = np.exp(np.random.default_rng(0).normal(size=26))
    H = operator @ np.eye(26)
    expected = np.linalg.eigvals(H / P[:, None]).real.max()
    found = eigenpairs(PreconditionedOperator(operator, P), top=1, bottom=0).values[0]
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_short_training_is_not_at_the_edge():
    law = OptimizerEdges(
        seed=0,
        num_samples=40,
        hidden_size=2,
        num_steps=6,
        num_measurements=3,
        heavy_ball_rate=0.01,
        nesterov_rate=0.01,
    )
    outcome = law.measure(None)
    held = {check.key: check.held for check in outcome.checks}
    assert not held["heavy_ball"]
    assert not held["nesterov"]
    assert len(outcome.panels[0].series[0].y) == 3


def test_training_that_diverges_says_so():
    law = OptimizerEdges(
        seed=0, num_samples=20, hidden_size=2, heavy_ball_rate=1e6, num_steps=60, num_measurements=3
    )
    with pytest.raises(PipelineError, match=r"heavy ball, β = 0\.5 diverged at step \d+: lower its rate"):
        law.measure(None)
