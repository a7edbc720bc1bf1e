"""Nets that are taken on parts of the batch, since the tangents of a unit would not fit: they make up the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import is_right, net, off
from torch import Tensor, nn

from pipeline.compute.dense import hessian
from pipeline.objective.batch import Batch
from pipeline.objective.objective import objective_of
from pipeline.strategy import KhatriRao
from pipeline.strategy.khatri_rao.captured_net import CapturedNet


class Block(nn.Module):
    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(fan_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if stride != 1 or fan_in != width
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(h + self.shortcut(x))


class ResNet(nn.Module):
    """Of widths 4, 4, 4, 6, with the stem of nets for photographs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 4, 7, 2, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.body = nn.Sequential(Block(4, 4, 1), Block(4, 4, 2), Block(4, 4, 2), Block(4, 6, 2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def resnet() -> tuple[nn.Module, Tensor, Tensor]:
    model = ResNet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    return model.eval(), torch.randn(5, 1, 32, 32), torch.tensor([0, 2, 1, 1, 0])


def rows_by_two_backward_passes(
    model: nn.Module, criterion: Any, x: Tensor, y: Tensor, rows: list[int]
) -> Tensor:
    weights = list(model.parameters())
    parts = torch.autograd.grad(criterion(model(x), y), weights, create_graph=True)
    flat = torch.cat([part.reshape(-1) for part in parts])
    found = [
        torch.autograd.grad(flat[row], weights, retain_graph=True, materialize_grads=True) for row in rows
    ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in found])


@pytest.mark.slow
def test_a_narrow_resnet_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `auto` and in parts of two samples by `khatri_rao`, certified; against some rows of double backward."""
    model, x, y = resnet()
    num_weights = sum(value.numel() for value in model.parameters())
    rows = list(range(7, num_weights, num_weights // 12))
    expected = rows_by_two_backward_passes(model, nn.CrossEntropyLoss(), x, y, rows)
    whole = hessian(model, nn.CrossEntropyLoss(), x, y)
    assert is_right(whole[rows], expected, 1e-11)
    taken: list[int] = []
    captured = CapturedNet.in_parts

    def in_twos(self: KhatriRao, objective: Any, params: Any, batch: Batch) -> list[CapturedNet]:
        nets = captured(objective, params, batch, 2)
        taken.append(len(nets))
        return nets

    monkeypatch.setattr(KhatriRao, "_captured", in_twos)
    parts = hessian(model, nn.CrossEntropyLoss(), x, y, strategy="khatri_rao")
    assert taken == [3]
    assert off(parts, whole) <= 1e-12


def by_size(model: Callable[[], nn.Module], criterion: Any, x: Tensor, y: Any) -> tuple[Any, ...]:
    return model(), criterion, x, y


def weighted() -> nn.Module:
    return nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0]))


def labels() -> Tensor:
    return torch.tensor([0, 2, 1, 1, 0])


def coupled(outputs: Tensor, _: Any) -> Tensor:
    return outputs.std(0).sum()


KINDS: dict[str, tuple[Callable[[], tuple[Any, ...]], int]] = {
    "mean": (lambda: by_size(lambda: net(3, 4, 3), nn.CrossEntropyLoss(), torch.randn(5, 3), labels()), 3),
    "sum": (
        lambda: by_size(
            lambda: net(3, 4, 3), nn.CrossEntropyLoss(reduction="sum"), torch.randn(5, 3), labels()
        ),
        3,
    ),
    "class weights": (lambda: by_size(lambda: net(3, 4, 3), weighted(), torch.randn(5, 3), labels()), 1),
    "ignored": (
        lambda: by_size(
            lambda: net(3, 4, 3),
            nn.CrossEntropyLoss(),
            torch.randn(5, 3),
            torch.tensor([0, -100, 1, 1, -100]),
        ),
        1,
    ),
    "coupled": (lambda: by_size(lambda: net(3, 4, 3), coupled, torch.randn(5, 3), None), 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_only_where_the_loss_is_a_sum_over_them(kind: str) -> None:
    build, expected = KINDS[kind]
    model, criterion, x, y = build()
    objective, params = objective_of(model, criterion)
    assert len(CapturedNet.in_parts(objective, params, Batch(x, y), 2)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_the_smallest_memory_there_is(kind: str, matrix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample at a time, if that is right."""
    problem = KINDS[kind][0]()
    expected = hessian(*problem, strategy="autograd", matrix=matrix)
    monkeypatch.setattr("pipeline.strategy.khatri_rao.numbers_of", lambda uses: 10**9)
    found = hessian(*problem, strategy=KhatriRao(megabytes=1), matrix=matrix)
    assert off(found, expected) <= 1e-12
