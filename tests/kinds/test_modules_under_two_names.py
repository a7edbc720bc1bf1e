"""A module, or a weight, that is registered in several places: right, and the model keeps its objects."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from kinds.asked import TOLERANCE, WAYS, data, differences, each_way, is_right, net
from torch import Tensor, nn

from pipeline.compute.dense import hessian


def twice_in_a_row() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(3, 2))


class Siamese(nn.Module):
    """Two branches that are one module, each under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left = net(3, 3, 2)
        self.right = self.left
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) - self.scale * self.right(x.flip(-1))


class InList(nn.Module):
    """One block several times in a ModuleList, as a net of shared layers has it."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.blocks = nn.ModuleList([block] * 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class InDict(nn.Module):
    """A block under two keys, and inside another module too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.table = nn.ModuleDict({"a": self.inner, "b": nn.Sequential(self.inner, nn.Tanh())})
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table["b"](torch.sin(self.table["a"](x))))


class WeightTwice(nn.Module):
    """One weight in two modules of different kinds, and a third time by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.out.weight = self.words.weight
        self.table = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.words(x.argmax(-1)) + x[:, :1] * self.table.mean(0)))[:, :2]


class BufferTwice(nn.Module):
    """A norm with running statistics in training mode, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.again(torch.tanh(self.norm(self.a(x))))))


class ParametersInList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        one = nn.Parameter(torch.randn(3))
        self.several = nn.ParameterList([one, nn.Parameter(torch.randn(3)), one])
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for value in self.several:
            x = torch.tanh(x * value)
        return self.head(x)


class Parametrised(nn.Module):
    """A layer whose weight is made by a parametrization, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
        self.b, self.head = self.a, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "twice in a row": twice_in_a_row,
    "siamese": Siamese,
    "in a list": InList,
    "in a dictionary": InDict,
    "a weight in three places": WeightTwice,
    "a norm in training mode": BufferTwice,
    "parameters in a list": ParametersInList,
    "parametrised": Parametrised,
}
REFUSES = {"a norm in training mode": "func"}


def places(model: nn.Module) -> dict[str, int]:
    return {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("kind", KINDS)
@each_way
def test_right_twice_and_the_same_objects(kind: str, way: str) -> None:
    if REFUSES.get(kind) == way:
        pytest.skip("refused, see tests/strategy/test_errors.py")
    model, x, y = KINDS[kind](), *data()
    expected = differences(copy.deepcopy(model), nn.MSELoss(), x, y)
    before = places(model)
    first, second = (hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way], verify=False) for _ in range(2))
    assert places(model) == before
    assert all(isinstance(value, nn.Parameter) for value in model.parameters())
    assert is_right(first, expected, TOLERANCE)
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["auto", "auto from khatri_rao"])
def test_an_optimizer_made_before_still_moves_every_weight(kind: str, way: str) -> None:
    model, x, y = KINDS[kind](), *data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way])
    before = [value.detach().clone() for value in model.parameters()]
    nn.MSELoss()(model(x), y).backward()
    optimizer.step()
    after = list(model.parameters())
    assert all(value.grad is not None for value in after)
    moved = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert all(moved) or kind in {
        "a norm in training mode",
        "parametrised",
    }  # a bias before a norm has no influence
    found = hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way])
    assert is_right(found, differences(copy.deepcopy(model), nn.MSELoss(), x, y))
