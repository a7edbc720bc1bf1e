"""Criteria that are modules: with weights and buffers of their own, and with those of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from kinds.asked import assert_right, data, differences, each_way, gauss_newton, net
from torch import Tensor, nn
from torch.nn import functional as F


class Centred(nn.Module):
    """A centre that moves a little with each call, in its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(2))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = (outputs - targets - self.centre).square().mean()
        self.centre.mul_(0.9).add_(0.1 * outputs.detach().mean(0))
        return loss


class Assigned(Centred):
    """The same, by assignment."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = (outputs - targets - self.centre).square().mean()
        self.centre = 0.9 * self.centre + 0.1 * outputs.detach().mean(0)
        return loss


class Tempered(nn.Module):
    """A temperature that is trained with the model, and is no weight of it."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(torch.tanh(outputs / self.temperature), targets)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "moves": Centred,
    "is assigned": Assigned,
    "is trained": Tempered,
}


@pytest.mark.parametrize("kind", KINDS)
@each_way
def test_it_begins_each_time_where_it_is_and_stays_there(kind: str, way: str) -> None:
    criterion, model, (x, y) = KINDS[kind](), net(3, 4, 2), data()
    before = {
        name: (id(value), value.clone()) for name, value in criterion.state_dict(keep_vars=True).items()
    }

    def alone(outputs: Tensor, targets: Tensor) -> Tensor:
        return copy.deepcopy(criterion)(outputs, targets)

    assert_right(way, (model, criterion, x, y), differences(model, alone, x, y), verify=way == "auto")
    if way in {"khatri_rao", "hvp", "auto"}:
        ggn = gauss_newton(model, alone, x, y)
        assert_right(way, (model, criterion, x, y), ggn, matrix="ggn", verify=way == "auto")
    for name, value in criterion.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])


class Holding(nn.Module):
    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("strength", torch.tensor(0.1))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets) + self.strength * self.model[0].weight.pow(4).sum()


@pytest.mark.parametrize("kept", [torch.float32, torch.float64])
@each_way
def test_one_that_holds_the_model_in_another_precision(kept: torch.dtype, way: str) -> None:
    """In float64 it must not read a copy of the weights, which nothing is differentiated by."""
    model, (x, y) = net(3, 4, 2).to(kept), data()
    criterion = Holding(model).to(kept)
    exact = copy.deepcopy(criterion).double()
    expected = differences(exact.model, exact, x, y)
    assert_right(way, (model, criterion, x, y), expected, dtype=torch.float64, verify=way == "auto")
    assert model[0].weight.dtype == criterion.strength.dtype == kept
