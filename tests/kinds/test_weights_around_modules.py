"""Weights that the loss reads in another way than through the module that holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import assert_refused, assert_right, data, differences, each_way, net, once
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, Any, Any, Any]


def penalised(penalty: Callable[[nn.Module], Tensor]) -> Built:
    model = net(3, 4, 2)
    return model, lambda outputs, targets: F.mse_loss(outputs, targets) + penalty(model), *data()


def in_a_list() -> Built:
    """Basis vectors registered by hand, and read from a list that the module keeps beside."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = [torch.randn(3, requires_grad=True) for _ in range(2)]
            self.kept = [nn.Parameter(value.detach()) for value in self.kept]
            for index, value in enumerate(self.kept):
                self.register_parameter(f"basis{index}", value)
            self.head = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.stack([torch.tanh(x @ value) for value in self.kept], -1))

    return Mixture(), nn.MSELoss(), *data()


def in_a_closure() -> Built:
    """A hook on one layer that reads the weight of another."""
    model = net(3, 4, 2)
    first = model[0].weight
    model[2].register_forward_hook(lambda module, inputs, outputs: outputs * first.square().sum())
    return model, nn.MSELoss(), *data()


def in_the_criterion_module() -> Built:
    """A criterion that is a module and holds the model as its own."""

    class Orthogonal(nn.Module):
        def __init__(self, model: nn.Sequential) -> None:
            super().__init__()
            self.model = model

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            w = self.model[0].weight
            gram = w.T @ w - torch.eye(w.shape[1], dtype=w.dtype)
            return F.mse_loss(outputs, targets) + 0.1 * gram.square().sum()

    model = net(3, 4, 2)
    return model, Orthogonal(model), *data()


def by_state_dict() -> Built:
    """The weights as `state_dict(keep_vars=True)` hands them out."""
    return penalised(lambda model: 0.1 * model.state_dict(keep_vars=True)["0.weight"].pow(4).sum())


def flattened() -> Built:
    return penalised(lambda model: 0.05 * nn.utils.parameters_to_vector(model.parameters()).pow(3).sum())


def of_those_that_are_trained() -> Built:
    model = net(3, 4, 2)
    model[0].bias.requires_grad_(False)
    return (
        model,
        lambda outputs, targets: (
            F.mse_loss(outputs, targets)
            + 0.1 * sum(value.pow(4).sum() for value in model.parameters() if value.requires_grad)
        ),
        *data(),
    )


def by_attribute() -> Built:
    """A second reference to one module, kept where modules are not looked for."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
            self.beside = (self.layer,)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.beside[0](torch.tanh(self.layer(x)))))

    return Pair(), nn.MSELoss(), *data()


def called_in_the_criterion() -> Built:
    """The criterion calls the model once more, at other inputs (consistency under noise)."""
    model, noise = net(3, 4, 2), 0.3 * torch.randn(5, 3)
    x, y = data()
    return (
        model,
        lambda outputs, targets: F.mse_loss(outputs, targets) + (outputs - model(x + noise)).square().mean(),
        x,
        y,
    )


def spectral() -> Built:
    return penalised(
        lambda model: 0.1 * torch.linalg.matrix_norm(model[0].weight + 2 * torch.eye(4, 3), "nuc")
    )


def groups_of_an_optimizer() -> Built:
    """The weights of a group of an optimizer, which holds them by itself."""
    model = net(3, 4, 2)
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1
    )

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets) + 0.1 * sum(
            p.pow(4).sum() for p in optimizer.param_groups[1]["params"]
        )

    return model, criterion, *data()


KINDS = {
    "fourth powers": lambda: penalised(lambda model: 0.1 * sum(p.pow(4).sum() for p in model.parameters())),
    "in a list": in_a_list,
    "in a closure": in_a_closure,
    "in the criterion": in_the_criterion_module,
    "by state dict": by_state_dict,
    "flattened": flattened,
    "those that are trained": of_those_that_are_trained,
    "by attribute": by_attribute,
    "called in the criterion": called_in_the_criterion,
    "nuclear norm": spectral,
    "groups of an optimizer": groups_of_an_optimizer,
}


@pytest.mark.parametrize("kind", KINDS)
@each_way
def test_every_way_counts_them(kind: str, way: str) -> None:
    problem = KINDS[kind]()
    refuses = ("func",) if kind == "called in the criterion" else ()
    assert_right(
        way, problem, once((__name__, kind), lambda: differences(*problem)), may_refuse=refuses, verify=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_agrees(kind: str) -> None:
    problem = KINDS[kind]()
    assert_right("auto", problem, once((__name__, kind), lambda: differences(*problem)))


@pytest.mark.parametrize("matrix", ["ggn", "fisher", "residual"])
def test_a_matrix_without_a_place_for_a_penalty_refuses_it(matrix: str) -> None:
    problem = penalised(lambda model: 0.1 * model[0].weight.square().sum())
    assert_refused(problem, "reads weights in another way.*use matrix=hessian|draws targets", matrix=matrix)


def test_half_a_sum_of_squares_adds_its_factor_to_the_diagonal() -> None:
    """In closed form, for a weight that has no gradient by itself either."""
    model, x, y = net(3, 4, 2), *data()
    plain = differences(model, nn.MSELoss(), x, y)

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets) + 0.15 * sum(p.square().sum() for p in model.parameters())

    assert_right("auto from khatri_rao", (model, criterion, x, y), plain + 0.3 * torch.eye(len(plain)))
