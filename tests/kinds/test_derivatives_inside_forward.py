"""Models whose outputs are derivatives of a net: by inputs or weights, by backward passes or by transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import assert_right, differences, each_way, gauss_newton, net, once
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap


class Around(nn.Module):
    def __init__(self, fan_out: int = 1) -> None:
        super().__init__()
        self.net = net(2, 3, fan_out)


class Forces(Around):
    """Energies and forces."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        energy = self.net(x)
        (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return torch.cat([energy, -slope], 1)


class Residual(Around):
    """A differential equation of second order."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            u = self.net(x)
            (slope,) = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)
            (curve,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
        return torch.cat([slope[:, 1:] - 0.1 * curve[:, :1] + u**2, u], 1)


class ByFunc(Around):
    """The same kind by transforms."""

    def forward(self, x: Tensor) -> Tensor:
        slope = vmap(grad(lambda one: self.net(one)[0]))(x)
        return torch.cat([slope, self.net(x)], 1)


class Laplacian(Around):
    def forward(self, x: Tensor) -> Tensor:
        curves = vmap(hessian(lambda one: self.net(one)[0]))(x)
        return curves.diagonal(dim1=1, dim2=2)


class Along(Around):
    """A derivative in forward mode, along a fixed direction."""

    def forward(self, x: Tensor) -> Tensor:
        return jvp(self.net, (x,), (torch.ones_like(x),))[1].expand(-1, 2)


class Divergence(Around):
    """The trace of a Jacobian, as flows in continuous time and score matching have it."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        jacobian = vmap(jacrev(self.net))(x)
        trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
        return torch.stack([trace, 0.5 * self.net(x).square().sum(1)], 1)


class OneStep(Around):
    """Outputs after a step of gradient descent on a loss inside: meta-learning."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(self.net.named_parameters())
        inner = self.net(x).square().mean()
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        stepped = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
        return functional_call(self.net, stepped, (x,))


class StepByFunc(OneStep):
    def forward(self, x: Tensor) -> Tensor:
        weights = dict(self.net.named_parameters())
        slopes = grad(lambda w: functional_call(self.net, w, (x,)).square().mean())(weights)
        return functional_call(self.net, {name: w - 0.1 * slopes[name] for name, w in weights.items()}, (x,))


class Momenta(Around):
    """A step of Hamilton's equations: slopes by both inputs."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(True):
            q, p = (part.detach().requires_grad_() for part in x.split(1, 1))
            energy = self.net(torch.cat([q, p], 1)).sum()
            by_q, by_p = torch.autograd.grad(energy, (q, p), create_graph=True)
        return torch.cat([q + 0.1 * by_p, p - 0.1 * by_q], 1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "forces": Forces,
    "residual": Residual,
    "by func": ByFunc,
    "laplacian": Laplacian,
    "along": Along,
    "divergence": Divergence,
    "one step": OneStep,
    "step by func": StepByFunc,
    "momenta": Momenta,
}
MAY_REFUSE = ("khatri_rao", "hvp", "func")


def problem(kind: str) -> tuple[nn.Module, Any, Tensor, Tensor]:
    model, x = MODELS[kind](), torch.randn(4, 2)
    return model, nn.MSELoss(), x, torch.randn(model(x).shape)


@pytest.mark.parametrize("kind", MODELS)
@each_way
def test_hessian(kind: str, way: str) -> None:
    one = problem(kind)
    assert_right(
        way,
        one,
        once((__name__, kind), lambda: differences(*one)),
        may_refuse=MAY_REFUSE,
        verify=way.startswith("auto"),
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", ["khatri_rao", "hvp", "func", "auto"])
def test_gauss_newton(kind: str, way: str) -> None:
    one = problem(kind)
    assert_right(
        way,
        one,
        once((__name__, kind, 0), lambda: gauss_newton(*one)),
        may_refuse=MAY_REFUSE,
        matrix="ggn",
        verify=way == "auto",
    )


@pytest.mark.parametrize("kind", ["forces", "laplacian", "by func"])
def test_some_weights_and_a_model_that_does_not_train(kind: str) -> None:
    one = problem(kind)
    whole = differences(*one)
    assert_right("auto", one, whole[6:9, 6:9], parameters="net.0.bias")
    one[0].requires_grad_(False)
    assert_right("auto", one, whole, parameters="*")


@each_way
def test_a_penalty_on_slopes_in_the_criterion(way: str) -> None:
    """A critic whose slope by its inputs is to be one."""
    model, x = net(2, 3, 1), torch.randn(4, 2)

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        at = targets.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(at).sum(), at, create_graph=True)
        return outputs.mean() + (slope.norm(dim=1) - 1).square().mean()

    one = (model, criterion, x, torch.randn(4, 2))
    assert_right(way, one, differences(*one), may_refuse=MAY_REFUSE, verify=way.startswith("auto"))
