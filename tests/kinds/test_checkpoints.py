"""`torch.utils.checkpoint` inside the model: what is computed again is so elsewhere, or at other weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.utils.checkpoint as checkpoints
from kinds.asked import WAYS, assert_right, data, differences, each_way, gauss_newton, net, once
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from pipeline.compute.dense import hessian
from pipeline.errors import PipelineError


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = net(3, 3, 3), nn.Linear(3, 2)


class Plainly(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Anew(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(checkpoint(self.a, x, use_reentrant=False)))


class Reentrant(Body):
    """The older form; its inputs have to require grad."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(checkpoint(self.a, x.clone().requires_grad_(), use_reentrant=True)))


class InSequence(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(checkpoint_sequential(self.a, 2, x, use_reentrant=False)))


class Nested(Body):
    """One inside another."""

    def forward(self, x: Tensor) -> Tensor:
        def inner(h: Tensor) -> Tensor:
            return torch.tanh(checkpoint(self.a, h, use_reentrant=False))

        return self.b(checkpoint(inner, x, use_reentrant=False))


class OfAFunction(Body):
    """A closure over weights, with keywords, and several outputs."""

    def forward(self, x: Tensor) -> Tensor:
        def part(h: Tensor, *, factor: float) -> tuple[Tensor, Tensor]:
            return torch.tanh(self.a(h)) * factor, h

        h, _ = checkpoint(part, x, factor=1.0, use_reentrant=False)
        return self.b(h)


class ByTheModule(Body):
    """Called through the module `torch.utils.checkpoint`, with a choice of what is kept."""

    def forward(self, x: Tensor) -> Tensor:
        kept = [torch.ops.aten.addmm.default]
        context = lambda: checkpoints.create_selective_checkpoint_contexts(kept)  # noqa: E731
        return self.b(torch.tanh(checkpoints.checkpoint(self.a, x, use_reentrant=False, context_fn=context)))


class Offloaded(Body):
    """What is saved for the backward pass is kept elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return self.b(torch.tanh(self.a(x)))


class Stepwise(nn.Module):
    """A block that a Sequential holds."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False)


def inside_sequential() -> nn.Module:
    return nn.Sequential(Stepwise(nn.Sequential(nn.Linear(3, 3), nn.Tanh())), Stepwise(nn.Linear(3, 2)))


def same_net() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 2))


MAY_REFUSE = {
    "reentrant": ("khatri_rao", "hvp", "func"),
    "offloaded": ("khatri_rao", "hvp", "func"),
}  # by PyTorch
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "anew": (Anew, Plainly),
    "reentrant": (Reentrant, Plainly),
    "in sequence": (InSequence, Plainly),
    "nested": (Nested, Plainly),
    "of a function": (OfAFunction, Plainly),
    "selective": (ByTheModule, Plainly),
    "offloaded": (Offloaded, Plainly),
    "inside Sequential": (inside_sequential, same_net),
}


def twin(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """The net with checkpoints, and a copy without."""
    model, plain = (build() for build in MODELS[kind])
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        one.data = other.data.to(dtype)
        other.data = one.data.double()
    return model.to(dtype), plain


@pytest.mark.parametrize("kind", MODELS)
@each_way
def test_hessian(kind: str, way: str) -> None:
    (model, plain), (x, y) = twin(kind), data()
    expected = once((__name__, kind), lambda: differences(plain, nn.MSELoss(), x, y))
    assert_right(way, (model, nn.MSELoss(), x, y), expected, may_refuse=MAY_REFUSE.get(kind, ()))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("matrix", ["ggn", "fisher"])
@pytest.mark.parametrize("way", ["khatri_rao", "func", "auto"])
def test_gauss_newton(kind: str, matrix: str, way: str) -> None:
    (model, plain), (x, y) = twin(kind), data()
    expected = once((__name__, kind, 0), lambda: gauss_newton(plain, nn.MSELoss(), x, y))
    assert_right(
        way, (model, nn.MSELoss(), x, y), expected, may_refuse=MAY_REFUSE.get(kind, ()), matrix=matrix
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", ["khatri_rao", "hvp", "triangular", "auto"])
def test_a_float32_net_in_either_precision(kind: str, way: str) -> None:
    (model, plain), (x, y) = twin(kind, torch.float32), data()
    x, y = x.float(), y.float()
    expected = once((__name__, kind, 1), lambda: differences(plain, nn.MSELoss(), x.double(), y.double()))
    problem = (model, nn.MSELoss(), x, y)
    may_refuse = MAY_REFUSE.get(kind, ())
    assert_right(way, problem, expected, may_refuse=may_refuse, dtype=torch.float64)
    assert_right(way, problem, expected, tolerance=1e-5, may_refuse=may_refuse)


def test_the_switch_is_put_back() -> None:
    """Afterwards a checkpoint computes its function again, as it did before; after a refusal too."""
    before = {name: value for name, value in vars(checkpoints).items() if not name.startswith("__")}
    (model, _), (x, y) = twin("anew"), data()
    calls = []
    model.a.register_forward_pre_hook(lambda *_: calls.append(1))
    for criterion in (nn.MSELoss(), nn.MSELoss(reduction="none")):
        with suppress(PipelineError):
            hessian(model, criterion, x, y)
        assert {name: value for name, value in vars(checkpoints).items() if name in before} == before
    calls.clear()
    nn.MSELoss()(model(x), y).backward()
    assert len(calls) == 2


def test_checkpoints_in_the_criterion() -> None:
    model, (x, y) = net(3, 4, 2), data()

    def criterion(outputs: Any, targets: Any) -> Tensor:
        return checkpoint(
            lambda f: nn.functional.mse_loss(torch.sin(f), targets), outputs, use_reentrant=False
        )

    problem = (model, criterion, x, y)
    expected = differences(*problem)
    for way in WAYS:
        assert_right(way, problem, expected)
    assert_right("auto", problem, gauss_newton(*problem), matrix="ggn")


def test_dropout_under_a_checkpoint_takes_one_mask() -> None:
    """Of a seed that is fixed; the plain net with the same seed has the same matrix."""
    with_it = nn.Sequential(
        Stepwise(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))), nn.Tanh(), nn.Linear(8, 2)
    )
    without = copy.deepcopy(with_it)
    without[0] = without[0].block
    x, y = data()
    for way in ("khatri_rao", "hvp", "auto"):
        found, expected = (
            hessian(one, nn.MSELoss(), x, y, strategy=WAYS[way], randomness=3) for one in (with_it, without)
        )
        assert torch.allclose(found, expected, rtol=0, atol=1e-14)
