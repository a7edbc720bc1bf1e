"""Random numbers of a model: refused, or the same in every call, in every dtype, and for every strategy but one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.cases import Problem
from support.oracles import finite_differences
from support.variants import NAMES, declared, strategy
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compute.dense import hessian
from pipeline.errors import PipelineError
from pipeline.objective.batch import Batch
from pipeline.objective.decompositions.mode import DecompositionMode
from pipeline.objective.decompositions.randomness import SeededRandomness
from pipeline.objective.objective import Objective, Params, objective_of
from pipeline.strategy.blocks import assemble

MANY = 20_000
FIXED = [name for name in NAMES if name != "func"]


class Dropped(nn.Module):
    """Linear, tanh, dropout, linear; `mask` in place of the dropout makes a net without random numbers."""

    def __init__(self, p: float, mask: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
        self.dropout, self.mask = nn.Dropout(p), mask

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.second(self.dropout(h) if self.mask is None else h * self.mask)


def samples(n: int = 7) -> Batch:
    torch.manual_seed(0)
    return Batch(torch.randn(n, 3, dtype=torch.float64), torch.randint(2, (n,)))


def nets(p: float, seed: int) -> tuple[Dropped, Dropped]:
    """A net with dropout, and one with the mask that the seed draws."""
    torch.manual_seed(0)
    net = Dropped(p)
    drawn = np.random.default_rng(seed).random((7, 4), dtype=np.float32)
    masked = Dropped(p, torch.from_numpy(drawn >= p).double() / (1 - p))
    masked.load_state_dict(net.state_dict())
    return net, masked


def assembled(name: str, objective: Objective, params: Params, batch: Batch) -> Tensor:
    size = sum(value.numel() for value in params.values())
    return assemble(strategy(name).blocks(objective, params, batch), size)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("p", [0.3, 0.8])
def test_hessian_is_that_of_the_net_with_the_mask(name: str, p: float) -> None:
    net, masked = nets(p, seed=5)
    objective, params = objective_of(net, nn.CrossEntropyLoss(), randomness=5)
    found = assembled(name, objective, params, samples())
    model, batch = objective_of(masked, nn.CrossEntropyLoss()), samples()
    expected = assembled("autograd", *model, batch)
    atol = 1e-14 + declared(strategy(name)) * float(expected.norm())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=atol)


def attention() -> nn.Module:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(2, 1, 2, 0.4, "gelu", 0.1, batch_first=True).double()
    return nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 2).double(), layer, nn.Flatten())


def recurrent() -> nn.Module:
    torch.manual_seed(1)
    layer = nn.GRU(1, 2, 2, dropout=0.5, batch_first=True).double()

    class Last(nn.Module):
        def forward(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
            return outputs[0].flatten(1)

    return nn.Sequential(nn.Unflatten(1, (3, 1)), layer, Last())


@pytest.mark.parametrize("build", [attention, recurrent])
def test_all_draws_of_a_call_are_fixed(build: Callable[[], nn.Module]) -> None:
    """In attention, after it, between recurrent layers: differences of the gradient are the judge."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build()

        def forward(self, x: Tensor) -> Tensor:
            with DecompositionMode(SeededRandomness(3)):
                return self.net(x)

    objective, params = objective_of(build(), nn.CrossEntropyLoss(), randomness=3)
    expected, tolerance = finite_differences(Problem(Fixed(), nn.CrossEntropyLoss(), samples(), None))
    for name in FIXED:
        allowed = tolerance + declared(strategy(name)) * float(expected.norm())
        assert (assembled(name, objective, params, samples()) - expected).abs().max() <= allowed


def test_every_call_sees_the_same_and_another_seed_other_numbers() -> None:
    net, _ = nets(0.5, 0)
    losses = []
    for seed in (0, 0, 1):
        objective, params = objective_of(net, nn.CrossEntropyLoss(), randomness=seed)
        losses += [objective.loss(params, samples()), objective.loss(params, samples())]
    assert losses[0] == losses[1] == losses[2] == losses[3]
    assert losses[4] == losses[5] != losses[0]


def test_masks_are_the_same_in_every_dtype() -> None:
    net, _ = nets(0.5, 0)
    batch = samples()
    double, single = (
        objective_of(net, nn.CrossEntropyLoss(), dtype=dtype, randomness=2)
        for dtype in (torch.float64, torch.float32)
    )
    exact = double[0].loss(double[1], batch)
    assert single[0].loss(single[1], batch.to(dtype=torch.float32)) == pytest.approx(float(exact), rel=1e-6)


def test_generators_of_others_are_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    net, _ = nets(0.5, 0)
    torch.manual_seed(7)
    objective, params = objective_of(net, nn.CrossEntropyLoss(), randomness=0)
    batch = Batch(torch.ones(7, 3).double(), torch.zeros(7, dtype=torch.long))
    objective.loss(params, batch)
    assert torch.equal(torch.rand(3), expected)


def test_samples_one_by_one_would_share_a_mask() -> None:
    net, _ = nets(0.5, 0)
    objective, params = objective_of(net, nn.CrossEntropyLoss(), randomness=0)
    with pytest.raises(PipelineError, match="depends on the other samples"):
        assembled("func", objective, params, samples())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("build", [lambda: Dropped(0.5), attention, recurrent])
def test_without_a_seed_they_are_refused(name: str, build: Callable[[], nn.Module]) -> None:
    with pytest.raises(PipelineError, match=r"draws random numbers \(dropout; .* randomness=SEED") as caught:
        hessian(build(), nn.CrossEntropyLoss(), *samples(), strategy(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_that_drops_nothing_is_not_refused(name: str) -> None:
    for net in (Dropped(0.5).eval(), Dropped(0.0), attention().eval(), recurrent().eval()):
        assert hessian(net, nn.CrossEntropyLoss(), *samples(), strategy(name)).isfinite().all()


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_seed_that_is_none(seed: Any) -> None:
    with pytest.raises(PipelineError, match=r"randomness=.*: give a whole number of at least 0"):
        objective_of(Dropped(0.5), nn.CrossEntropyLoss(), randomness=seed)


X = torch.linspace(-2, 3, MANY)
DROPOUTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    "dropout": (lambda x: F.dropout(x, 0.3), (7, 5, 3), 3),
    "dropout in place": (lambda x: F.dropout(x, 0.3, inplace=True), (7, 5, 3), 3),
    "torch.dropout": (lambda x: torch.dropout(x, 0.3, True), (7, 5, 3), 3),
    "dropout1d": (lambda x: F.dropout1d(x, 0.3), (7, 5, 3), 2),
    "dropout1d of a sample": (lambda x: F.dropout1d(x, 0.3), (35, 3), 1),
    "dropout2d": (lambda x: F.dropout2d(x, 0.3), (7, 5, 3, 2), 2),
    "dropout3d": (lambda x: F.dropout3d(x, 0.3), (7, 5, 3, 2, 1), 2),
    "dropout3d of a sample": (lambda x: F.dropout3d(x, 0.3, inplace=True), (35, 3, 2, 1), 1),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_keeps_or_drops_whole_parts(name: str) -> None:
    function, shape, num_dims = DROPOUTS[name]
    x = torch.ones(shape)
    with DecompositionMode(SeededRandomness(0)):
        found = function(x)
    assert torch.equal(x, found) == ("in place" in name or "3d of a sample" in name)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.7])
    parts = found.reshape(torch.Size(shape[:num_dims]).numel(), -1)
    assert torch.equal(parts, parts[:, :1].expand_as(parts))
    assert (parts > 0).double().mean() == pytest.approx(0.7, abs=4 * (0.21 / len(parts)) ** 0.5)


def test_everything_is_dropped_at_probability_one() -> None:
    with DecompositionMode(SeededRandomness(0)):
        assert torch.equal(F.dropout(X, 1.0), torch.zeros(MANY))


@pytest.mark.parametrize("function", [F.alpha_dropout, F.feature_alpha_dropout])
def test_alpha_dropout_keeps_mean_and_variance(function: Callable[..., Tensor]) -> None:
    x = torch.randn(MANY, 1, 2, generator=torch.Generator().manual_seed(0))
    with DecompositionMode(SeededRandomness(0)):
        found = function(x, 0.4, True)
    assert abs(found.mean()) < 0.03
    assert abs(found.var() - 1) < 0.05
    same = (found[..., 0] == found[..., 1]).double().mean()  # where both are dropped
    assert same == pytest.approx(0.4 if function is F.feature_alpha_dropout else 0.16, abs=0.02)
    assert function(x, 0.4, False) is not None


MOMENTS: dict[str, tuple[Callable[[], Tensor], float, float]] = {
    "rand": (lambda: torch.rand(MANY), 1 / 2, 1 / 12),
    "rand of a shape": (lambda: torch.rand((MANY // 2, 2)), 1 / 2, 1 / 12),
    "rand of a size": (lambda: torch.rand(size=(MANY,)), 1 / 2, 1 / 12),
    "randn": (lambda: torch.randn(MANY, dtype=torch.float64), 0, 1),
    "rand_like": (lambda: torch.rand_like(X), 1 / 2, 1 / 12),
    "randn_like": (lambda: torch.randn_like(X), 0, 1),
    "randint": (lambda: torch.randint(4, (MANY,)).double(), 1.5, 1.25),
    "randint from": (lambda: torch.randint(2, 6, (MANY,)).double(), 3.5, 1.25),
    "randint of a size": (lambda: torch.randint(low=2, high=6, size=(MANY,)).double(), 3.5, 1.25),
    "randperm": (lambda: torch.randperm(MANY) / MANY, 1 / 2, 1 / 12),
    "bernoulli": (lambda: torch.bernoulli(torch.full((MANY,), 0.3)), 0.3, 0.21),
    "bernoulli of p": (lambda: X.bernoulli(0.3), 0.3, 0.21),
    "normal": (lambda: torch.normal(2.0, 3.0, (MANY,)), 2, 9),
    "normal of tensors": (lambda: torch.normal(X * 0 + 2, X * 0 + 3), 2, 9),
    "normal of means": (lambda: torch.normal(X * 0 + 2), 2, 1),
    "uniform_": (lambda: torch.empty(MANY).uniform_(-1, 3), 1, 16 / 12),
    "uniform_ to": (lambda: torch.empty(MANY).uniform_(to=3), 1.5, 9 / 12),
    "normal_": (lambda: torch.empty(MANY).normal_(std=2), 0, 4),
    "exponential_": (lambda: torch.empty(MANY).exponential_(2), 1 / 2, 1 / 4),
    "bernoulli_": (lambda: torch.empty(MANY).bernoulli_(0.3), 0.3, 0.21),
    "distributions": (lambda: torch.distributions.Normal(2.0, 3.0).rsample((MANY,)), 2, 9),
    "gumbel_softmax": (lambda: F.gumbel_softmax(torch.zeros(MANY, 2), hard=True)[:, 0], 1 / 2, 1 / 4),
    "rrelu": (lambda: -F.rrelu(torch.full((MANY,), -1.0), 0.2, 0.6, training=True), 0.4, 0.16 / 12),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_of_what_is_drawn(name: str) -> None:
    function, mean, variance = MOMENTS[name]
    with DecompositionMode(SeededRandomness(0)):
        found, other = function(), function()
    with DecompositionMode(SeededRandomness(0)):
        again = function()
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    assert found.mean() == pytest.approx(mean, abs=5 * (variance / MANY) ** 0.5)
    assert found.var() == pytest.approx(variance, rel=0.06)
    with pytest.raises(PipelineError, match="draws random numbers"), DecompositionMode():
        function()


UNFIXED: dict[str, Callable[[], Any]] = {
    "multinomial": lambda: torch.multinomial(torch.ones(3), 1),
    "poisson": lambda: torch.poisson(X[-3:]),
    "random_": lambda: torch.empty(3).random_(),
    "uniform_": lambda: nn.init.uniform_(torch.empty(3)),
    "fractional_max_pool2d": lambda: F.fractional_max_pool2d(torch.ones(1, 1, 4, 4), 2, 2),
    "fractional_max_pool2d_with_indices": lambda: F.fractional_max_pool2d(
        torch.ones(1, 1, 4, 4), 2, 2, return_indices=True
    ),
}


@pytest.mark.parametrize("name", UNFIXED)
def test_draws_that_no_seed_can_fix(name: str) -> None:
    for seed, remedy in ((None, r"use model\.eval\(\), or randomness=SEED"), (4, "randomness=4 cannot fix")):
        with pytest.raises(PipelineError, match=remedy) as caught, DecompositionMode(SeededRandomness(seed)):
            UNFIXED[name]()
        assert name in str(caught.value)
