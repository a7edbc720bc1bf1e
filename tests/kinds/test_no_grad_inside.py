"""Parts of a model that are hidden from autograd: the matrix is what autograd takes them for, by every way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import (
    WAYS,
    assert_refused,
    assert_right,
    data,
    each_way,
    gauss_newton,
    net,
    once,
    weights_of,
)
from torch import Tensor, nn
from torch.nn import functional as F


def twice(model: nn.Module, criterion: Any, inputs: Any, targets: Any) -> Tensor:
    """Two backward passes through the plain module: each row of its own."""
    weights = weights_of(model)
    loss = criterion(model(inputs), targets)
    parts = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    flat = torch.cat([part.reshape(-1) for part in parts]) + 0 * sum(value.sum() for value in weights)
    rows = [torch.autograd.grad(g, weights, retain_graph=True, materialize_grads=True) for g in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]).detach()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def body(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))


class Frozen(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
        return torch.tanh(self.b(h))


class Decorated(Two):
    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(self.features(x)))


class SwitchedOff(Two):
    def forward(self, x: Tensor) -> Tensor:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        h = self.body(x)
        torch.set_grad_enabled(before)
        return torch.tanh(self.b(h))


class OnAgain(Two):
    """Switched on again inside."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
            with torch.enable_grad():
                h = h + 0.5 * self.body(x)
            scale = h.abs().max()
        return torch.tanh(self.b(h / scale))


class Detached(Two):
    """Half of the features without their derivative."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return torch.tanh(self.b(0.5 * h + 0.5 * h.detach()))


class ByData(Two):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return torch.tanh(self.b(h / (1 + h.data.square().sum(-1, keepdim=True))))


class WeightsByData(Two):
    """A norm of the weights read beside autograd."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(self.body(x), self.b.weight / self.b.weight.data.norm(), self.b.bias))


class InPlaceDetached(Two):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        factor = h.mean(1, keepdim=True) * 2
        factor.detach_()
        return torch.tanh(self.b(h * factor))


class Straight(Two):
    """Rounded values with the slope of those before."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return torch.tanh(self.b(h + ((4 * h).round() / 4 - h).detach()))


class Gated(Two):
    """A choice of paths by a mask that has no derivative."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        with torch.no_grad():
            mask = (h > h.median(1, keepdim=True).values).to(h)
        return torch.tanh(self.b(h * mask + 0.1 * h.square()))


class Copied(Two):
    """Written into a tensor that was made without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        with torch.no_grad():
            kept = torch.zeros_like(h)
            kept.copy_(h)
            kept += 0.1
        return torch.tanh(self.b(h * kept))


class Implicit(Two):
    """A fixed point that is found without a graph, and one step with it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = torch.zeros_like(x)
            for _ in range(5):
                h = 0.5 * torch.tanh(self.a(h) + x)
        return torch.tanh(self.b(0.5 * torch.tanh(self.a(h) + x)))


class OwnSlope(torch.autograd.Function):
    """A slope that is not the function's, and changes with the point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1 + ctx.saved_tensors[0].square())


class Turned(torch.autograd.Function):
    """The gradient with its sign turned, as in adversarial adaptation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class Surrogate(Two):
    function: Any = OwnSlope

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(self.function.apply(self.body(x))))


class Adversarial(Surrogate):
    function = Turned


MODELS: dict[str, Callable[[], nn.Module]] = {
    "no_grad": Frozen,
    "decorated": Decorated,
    "set_grad_enabled": SwitchedOff,
    "on again": OnAgain,
    "detach": Detached,
    "data": ByData,
    "data of a weight": WeightsByData,
    "detach_": InPlaceDetached,
    "straight through": Straight,
    "gated": Gated,
    "copied": Copied,
    "implicit": Implicit,
    "a slope of its own": Surrogate,
    "a turned gradient": Adversarial,
}
FORWARD = ("khatri_rao", "hvp", "func")
MAY_REFUSE: dict[str, tuple[str, ...]] = {
    "a slope of its own": FORWARD,
    "a turned gradient": FORWARD,
    "detach_": FORWARD,  # forward mode does not see it
    "on again": ("func",),  # the largest of all samples
}


@pytest.mark.parametrize("kind", MODELS)
@each_way
def test_hessian(kind: str, way: str) -> None:
    problem = (MODELS[kind](), nn.MSELoss(), *data())
    expected = once((__name__, kind), lambda: twice(*problem))
    assert_right(way, problem, expected, may_refuse=MAY_REFUSE.get(kind, ()))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", ["khatri_rao", "hvp", "func", "auto"])
def test_gauss_newton(kind: str, way: str) -> None:
    problem = (MODELS[kind](), nn.MSELoss(), *data())
    expected = once((__name__, kind, 0), lambda: gauss_newton(*problem))
    assert_right(way, problem, expected, matrix="ggn", verify=way == "auto")


class Bootstrapped(nn.Module):
    """A predictor after an encoder, and what it is to predict: the other view, without a gradient."""

    def __init__(self, detach: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.encoder, self.predictor, self.detach = net(3, 3, 2), nn.Linear(2, 2), detach

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        predicted = self.predictor(self.encoder(x))
        if self.detach is None:
            with torch.no_grad():
                return predicted, self.encoder(x.flip(-1))
        return predicted, self.detach(self.encoder(x.flip(-1)))


def alignment(outputs: tuple[Tensor, Tensor], _: Any) -> Tensor:
    return -F.cosine_similarity(*outputs, dim=-1).mean()


@pytest.mark.parametrize("kind", ["detach", "data", "no_grad"])
@each_way
def test_targets_of_the_model_itself(kind: str, way: str) -> None:
    kinds: dict[str, Any] = {"detach": lambda t: t.detach(), "data": lambda t: t.data, "no_grad": None}
    problem = (Bootstrapped(kinds[kind]), alignment, torch.randn(4, 3), None)
    assert_right(way, problem, once((__name__, kind, 1), lambda: twice(*problem)))


FOCAL: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda p: (1 - p.detach()).square(),
    "data": lambda p: (1 - p.data).square(),
    "item": lambda p: torch.tensor([(1 - one.item()) ** 2 for one in p]),
}


@pytest.mark.parametrize("kind", FOCAL)
@each_way
def test_weights_of_samples_that_are_read_off_the_outputs(kind: str, way: str) -> None:
    """Without a certificate what autograd makes of it; with one a refusal: its gradients are another loss's."""

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        log = outputs.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        return -(FOCAL[kind](log.exp()) * log).mean()

    problem = (net(3, 3, 3), criterion, torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0]))
    may_refuse = FORWARD if kind == "item" else ()
    expected = once((__name__, kind, 2), lambda: twice(*problem))
    assert_right(way, problem, expected, may_refuse=may_refuse, verify=False)
    assert_refused(problem, "differs from central differences of the model|cannot", strategy=WAYS[way])
