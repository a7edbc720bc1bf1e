"""Fisher matrices of random nets, against a Jacobian; mean-field integrals, against their closed forms."""

import numpy as np
import pytest
import torch
from scipy.special import erf

from pipeline.law import FisherWidth, fisher_width
from pipeline.law.fisher_width import Activation, gaussian_product, gradient_products

SMALL = FisherWidth(seed=0, widths=(48, 96, 192), num_samples=30, num_nets=6)
ERF = Activation(erf, lambda z: 2 / np.sqrt(np.pi) * np.exp(-(z**2)))
LINEAR = Activation(lambda z: z, np.ones_like)


@pytest.mark.parametrize("variance", [0.3, 2.0])
@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_integrals_of_erf_have_closed_forms(variance, correlation):
    """Williams 1997, Computing with infinite networks."""
    covariance = correlation * variance
    value = 2 / np.pi * np.arcsin(2 * covariance / (1 + 2 * variance))
    assert gaussian_product(erf, variance, covariance) == pytest.approx(value, abs=1e-5)
    slope = 4 / np.pi / np.sqrt((1 + 2 * variance) ** 2 - 4 * covariance**2)
    assert gaussian_product(ERF.derivative, variance, covariance) == pytest.approx(slope, rel=1e-4)


def test_gradient_products_of_a_linear_net():
    """Without biases each of L terms is σ_w^(2 (L − 1)), and orthogonal inputs stay so."""
    assert gradient_products(LINEAR, 4, 1.5, 0.0) == pytest.approx((4 * 1.5**3, 0.0))
    same, other = gradient_products(LINEAR, 2, 1.5, 0.5)
    assert (same, other) == pytest.approx((1.5 * 1 + (1.5 + 0.5), 0 + 0.5))


def test_gradient_products_of_a_wide_net_by_its_gradients():
    torch.manual_seed(0)
    law = FisherWidth(seed=0, widths=(1500,), num_outputs=1)
    net, inputs = law._net(1500), torch.randn(2, 1500, dtype=torch.float64)
    rows = []
    for sample in inputs:
        output = net(sample[None]).squeeze()
        rows.append(
            torch.cat([each.flatten() for each in torch.autograd.grad(output, list(net.parameters()))])
        )
    products = torch.stack(rows) @ torch.stack(rows).T / 1500
    same, other = gradient_products(fisher_width.TANH, 3, 3.0, 0.64)
    assert products.diagonal().mean().item() == pytest.approx(same, rel=0.15)
    assert products[0, 1].item() == pytest.approx(other, rel=0.3)


def test_averages_are_those_of_the_dense_matrix():
    law = FisherWidth(seed=7, widths=(6,), num_samples=5, num_nets=1)
    torch.manual_seed(7)
    inputs, net = torch.randn(5, 6, dtype=torch.float64), law._net(6)
    rows = [
        torch.cat(
            [
                each.flatten()
                for each in torch.autograd.grad(output, list(net.parameters()), retain_graph=True)
            ]
        )
        for sample in inputs
        for output in net(sample[None]).flatten().tensor_split(2)
    ]
    J = torch.stack(rows)
    values = torch.linalg.eigvalsh(J.T @ J / 5)
    assert law._averages(6) == pytest.approx((values.mean().item(), values[-1].item()), rel=1e-9)


def test_the_law_holds_at_reduced_size():
    outcome = SMALL.measure(None)
    measured = {check.key: check.measured for check in outcome.checks}
    assert measured["mean_slope"] == pytest.approx(-1, abs=0.1)
    assert measured["largest_slope"] == pytest.approx(1, abs=0.2)
    assert measured["mean_ratio"] == pytest.approx(1, abs=0.1)
    assert measured["largest_ratio"] == pytest.approx(1, abs=0.25)


def test_it_is_not_held_without_the_width_in_the_weights(monkeypatch):
    right = FisherWidth._net

    def wrong(law, width):
        net = right(law, width)
        with torch.no_grad():
            net[0].weight *= (width / 48) ** 0.25
        return net

    monkeypatch.setattr(FisherWidth, "_net", wrong)
    held = {check.key: check.held for check in SMALL.measure(None).checks}
    assert not held["largest_slope"]
