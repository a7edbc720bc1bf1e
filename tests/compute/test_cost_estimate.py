"""The plan: what is known from shapes, and what is measured to turn it into seconds."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from pipeline.compute import cost_estimate
from pipeline.compute.cost_estimate import Plan, expected_seconds, gemm_rate, in_units
from pipeline.criterion import CrossEntropy
from pipeline.objective.batch import Batch
from pipeline.objective.objective import objective_of
from pipeline.strategy import HVP, Auto, Func, KhatriRao, Triangular


def problem(*sizes, num_samples=128):
    layers = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(sizes)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])
    batch = Batch(torch.randn(num_samples, sizes[0]), torch.arange(num_samples) % sizes[-1])
    return *objective_of(model, CrossEntropy()), batch


def test_numbers_of_the_net_of_the_design():
    found = Plan.of(KhatriRao(), *problem(64, 100, 10))
    assert (found.num_parameters, found.num_samples, found.num_tangents) == (7510, 128, 110)
    assert found.flop == 128 * 7400**2  # biases are sums, not products
    assert found.matrix_bytes == 4 * 7510**2
    assert str(found) == "110 tangents and 7.01 GFLOP a batch of 128 samples"


@pytest.mark.parametrize(
    ("strategy", "num_tangents"), [(HVP(), 66), (Triangular(), 66), (Func(chunk_size=3), 66)]
)
def test_other_strategies_take_a_tangent_for_each_weight(strategy, num_tangents):
    found = Plan.of(strategy, *problem(4, 6, 4, 2, num_samples=12))
    assert (found.num_parameters, found.num_tangents, found.flop) == (68, num_tangents * 68 // 66, 0)
    assert str(found) == f"{found.num_tangents:,} tangents a batch of 12 samples"


@pytest.mark.parametrize(
    ("sizes", "taken"), [((4, 2), "autograd"), ((8, 20, 2), "hvp"), ((64, 100, 10), "khatri_rao")]
)
def test_auto_plans_what_it_would_take(sizes, taken):
    assert Plan.of(Auto(), *problem(*sizes)).strategy == taken


def test_seconds_add_up(monkeypatch):
    objective, params, batch = problem(64, 100, 10)
    monkeypatch.setattr(cost_estimate, "_seconds_per_tangent", lambda *_: 0.01)
    monkeypatch.setattr(cost_estimate, "gemm_rate", lambda like: 1e9)
    found = expected_seconds(Plan.of(KhatriRao(), objective, params, batch), objective, params, batch)
    assert found == pytest.approx(110 * 0.01 + 128 * 7400**2 / 1e9)


def test_rates_are_measured_in_the_dtype_of_the_weights(monkeypatch):
    asked, randn = [], torch.randn
    monkeypatch.setattr(
        torch, "randn", lambda *n, **kinds: asked.append(kinds["dtype"]) or randn(*n, **kinds)
    )
    assert 1e6 < gemm_rate(torch.zeros(1, dtype=torch.float64), size=64) < 1e15
    assert asked == [torch.float64]


def test_seconds_are_known_without_forward_mode():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Model(nn.Linear):
        def forward(self, x):
            return Once.apply(super().forward(x))

    objective, params = objective_of(Model(3, 2), CrossEntropy())
    batch = Batch(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    found = expected_seconds(Plan.of(Triangular(), objective, params, batch), objective, params, batch)
    assert 0 < found < 1


@pytest.mark.parametrize(
    ("number", "said"), [(7, "7 FLOP"), (1500, "1.5 kFLOP"), (7.2e9, "7.2 GFLOP"), (3e15, "3 PFLOP")]
)
def test_units(number, said):
    assert in_units(number, "FLOP") == said
