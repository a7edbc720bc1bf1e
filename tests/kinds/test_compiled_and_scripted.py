"""Modules that `torch.compile`, TorchScript or tracing made of others: as the modules that are inside, or one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kinds.asked import assert_refused, assert_right, data, differences, each_way, gauss_newton, net, once
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compute.dense import hessian

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch._dynamo.reset()


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def whole() -> nn.Module:
    return compiled(net(3, 4, 2))


def after_a_call() -> nn.Module:
    """Compiled for these inputs before."""
    model = compiled(net(3, 4, 2))
    model(torch.randn(5, 3)).sum().backward()
    model.zero_grad()
    return model


def a_part() -> nn.Module:
    model = net(3, 4, 2)
    model[0] = compiled(model[0])
    return model


def in_place() -> nn.Module:
    model = net(3, 4, 2)
    model.compile(backend="eager")
    return model


def twice() -> nn.Module:
    return compiled(nn.Sequential(compiled(net(3, 4, 2))))


class OfAMethod(nn.Module):
    """Its forward is compiled where the class is made."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net(3, 4, 2)
        self.step = compiled(self.body)

    def body(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


@torch.compile(backend="eager")
def gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class OfAFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(gate(self.a(x)))


@torch.jit.script
def scripted_gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class OfAScript(OfAFunction):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(scripted_gate(self.a(x)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "whole": whole,
    "after a call": after_a_call,
    "a part": a_part,
    "in place": in_place,
    "twice": twice,
    "a method": OfAMethod,
    "a function": OfAFunction,
    "a scripted function": OfAScript,
    "fx": lambda: torch.fx.symbolic_trace(net(3, 4, 2)),
}


@pytest.mark.parametrize("kind", MODELS)
@each_way
def test_right_and_left_alone(kind: str, way: str) -> None:
    model, (x, y) = MODELS[kind](), data()
    before = {name: id(value) for name, value in model.named_parameters()}
    with torch.compiler.set_stance("force_eager"):
        expected = once((__name__, kind), lambda: differences(model, nn.MSELoss(), x, y))
    assert_right(way, (model, nn.MSELoss(), x, y), expected, verify=way.startswith("auto"))
    assert {name: id(value) for name, value in model.named_parameters()} == before


@pytest.mark.parametrize("kind", ["whole", "a part", "a function"])
def test_gauss_newton_and_a_second_call(kind: str) -> None:
    model, (x, y) = MODELS[kind](), data()
    for way in ("auto from khatri_rao", "hvp", "auto from khatri_rao"):
        with torch.compiler.set_stance("force_eager"):
            expected = gauss_newton(model, nn.MSELoss(), x, y)
        assert_right(way, (model, nn.MSELoss(), x, y), expected, matrix="ggn")


def test_it_is_compiled_as_before_afterwards() -> None:
    """Neither is it compiled anew, nor does it run as it was written."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = torch.compile(net(3, 4, 2), backend=backend)
    (x, y) = data()
    before = model(x)
    hessian(model, nn.MSELoss(), x, y)
    hessian(model, nn.MSELoss(), x, y, strategy="khatri_rao")
    assert torch.equal(model(x), before)
    assert len(graphs) == 1


def test_a_compiled_criterion() -> None:
    model, (x, y) = net(3, 4, 2), data()
    criterion = compiled(lambda outputs, targets: (outputs.sin() - targets).square().mean())
    expected = differences(model, lambda outputs, targets: (outputs.sin() - targets).square().mean(), x, y)
    for way in ("auto", "auto from khatri_rao", "hvp", "func"):
        assert_right(way, (model, criterion, x, y), expected)


SCRIPTED: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: torch.jit.script(net(3, 4, 2)),
    "traced": lambda: torch.jit.trace(net(3, 4, 2), torch.randn(5, 3)),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(net(3, 4, 2)).eval()),
    "a part": lambda: nn.Sequential(torch.jit.script(net(3, 4, 2)), nn.Tanh()),
}


@pytest.mark.parametrize("kind", SCRIPTED)
@each_way
def test_scripted_modules_are_refused(kind: str, way: str) -> None:
    model, (x, y) = SCRIPTED[kind](), data()
    match = (
        "has no parameter" if kind == "frozen" else "is scripted.*give the module that it was scripted from"
    )
    assert_refused((model, nn.MSELoss(), x, y), match, strategy=way if way in {"hvp", "func"} else "auto")


def test_a_scripted_criterion_is_refused() -> None:
    model, (x, y) = net(3, 4, 2), data()
    assert_refused(
        (model, torch.jit.script(nn.MSELoss()), x, y),
        "is scripted.*give the module that it was scripted from",
    )


def test_an_exported_program() -> None:
    model, (x, y) = net(3, 4, 2), data()
    exported = torch.export.export(model, (x,)).module()
    expected = differences(model, nn.MSELoss(), x, y)
    for way in ("auto", "khatri_rao"):
        assert_right(way, (exported, nn.MSELoss(), x, y), expected)
    assert F.mse_loss(exported(x), model(x)) == 0
