"""Samples that influence each other, in patterns that a trial with halves of the batch does not see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import assert_right, data, differences, each_way, gauss_newton, net, once
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, Any, Any, Any]
N = 6


def by_criterion(criterion: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Built]:
    return lambda: (net(3, 3, 2), criterion, *data(n=N))


def triplets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Anchor, near and far, one after the other."""
    a, near, far = outputs.unflatten(0, (-1, 3)).unbind(1)
    return F.softplus((a - near).square().sum(-1) - (a - far).square().sum(-1)).mean()


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each sample against all others."""
    z = F.normalize(outputs, dim=-1)
    return F.cross_entropy(z @ z.T / 0.5, torch.arange(N).roll(1))


def last_two(outputs: Tensor, targets: Tensor) -> Tensor:
    """Only the last two samples are coupled."""
    return F.mse_loss(outputs, targets) + (outputs[-1] * outputs[-2]).sum().square()


def neighbors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Differences in time, in an order that is shuffled."""
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    return F.mse_loss(outputs, targets) + 0.3 * outputs[order].diff(dim=0).square().mean()


def worst(outputs: Tensor, targets: Tensor) -> Tensor:
    """A soft maximum over the losses of samples."""
    return torch.logsumexp((outputs - targets).square().sum(-1), 0)


def covariance(outputs: Tensor, targets: Tensor) -> Tensor:
    """Redundancy between outputs, over the batch."""
    z = outputs - outputs.mean(0)
    return (z.T @ z / N - torch.eye(2)).square().sum()


class Weak(nn.Module):
    """Samples are coupled by a term that is small beside the others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(h + 1e-3 * h.roll(1, 0) * h.roll(2, 0))


class Sorted(nn.Module):
    """Each sample minus the one next to it in the order of one of its units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        order = h[:, 0].argsort()
        return self.b(h - 0.5 * h[order].roll(1, 0)[order.argsort()] ** 2)


class Attending(nn.Module):
    """Samples look at each other, within groups of three."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.out = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.q(x).unflatten(0, (-1, 3)), self.v(x).unflatten(0, (-1, 3))
        return self.out((torch.softmax(q @ q.mT, -1) @ v).flatten(0, 1))


class SmallBatches(nn.Module):
    """Batch norm of the samples by twos, as several devices have it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).unflatten(0, (-1, 2))
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True) + 0.5).sqrt()
        return self.b(torch.tanh(h.flatten(0, 1)))


class Segments(nn.Module):
    """Nodes of three graphs of different sizes: each sees the mean of its own graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        graph = torch.tensor([0, 0, 0, 1, 2, 2])
        mean = h.new_zeros(3, 3).index_add(0, graph, h) / graph.bincount()[:, None]
        return self.b(torch.cat([h, mean[graph]], -1))


class Memory(nn.Module):
    """Samples are steps in time: a state goes from each to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.s, self.b = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        state, states = x.new_zeros(2), []
        for one in self.a(x).unbind():
            state = torch.tanh(one + self.s(state))
            states.append(state)
        return self.b(torch.stack(states))


MODELS = {
    "weakly": Weak,
    "sorted": Sorted,
    "attention": Attending,
    "twos": SmallBatches,
    "graphs": Segments,
    "memory": Memory,
}
KINDS: dict[str, Callable[[], Built]] = {
    "triplets": by_criterion(triplets),
    "contrastive": by_criterion(contrastive),
    "the last two": by_criterion(last_two),
    "differences": by_criterion(neighbors),
    "soft maximum": by_criterion(worst),
    "covariance": by_criterion(covariance),
    **{name: lambda build=build: (build(), nn.MSELoss(), *data(n=N)) for name, build in MODELS.items()},
}


@pytest.mark.parametrize("kind", KINDS)
@each_way
def test_hessian(kind: str, way: str) -> None:
    problem = KINDS[kind]()
    may_refuse = ("func",) if kind in MODELS else ()
    assert_right(
        way,
        problem,
        once((__name__, kind), lambda: differences(*problem)),
        may_refuse=may_refuse,
        verify=False,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["khatri_rao", "hvp", "auto from khatri_rao"])
def test_gauss_newton(kind: str, way: str) -> None:
    problem = KINDS[kind]()
    assert_right(
        way,
        problem,
        once((__name__, kind, 0), lambda: gauss_newton(*problem)),
        matrix="ggn",
        verify=way.startswith("auto"),
    )


def test_two_samples_and_one() -> None:
    """The smallest batches in which there can be a coupling, and in which there is none."""
    for n in (1, 2):
        problem = (net(3, 3, 2), lambda outputs, targets: outputs.sum(0).square().mean(), *data(n=n))
        assert_right("khatri_rao", problem, differences(*problem), verify=False)
