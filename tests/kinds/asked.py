"""How tests of kinds of faults ask for a matrix, and what it should be: found on the module, by backward passes.

A kind is one way in which a matrix came out wrong, was refused though it could be had, or changed the model. Each file
here holds one kind, and neighbors of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.compute.dense import hessian
from pipeline.errors import PipelineError
from pipeline.strategy import HVP, Auto, Autograd, Func, KhatriRao, Triangular

WAYS: dict[str, Any] = {
    "khatri_rao": KhatriRao(),
    "hvp": HVP(),
    "func": Func(),
    "triangular": Triangular(),
    "autograd": Autograd(),
    "auto": Auto(),
    "auto from khatri_rao": Auto(few_weights=1, very_few_weights=1, some_weights=1),
}
AUTOS = ("auto", "auto from khatri_rao")
REVERSE = ("triangular", "autograd")
STEP = 2.0**-12
TOLERANCE = 1e-7

KEPT: dict[Any, Tensor] = {}


def once(key: Any, make: Callable[[], Tensor]) -> Tensor:
    """What is made for the first way that asks, for all others too: tests of one kind build the same problem."""
    if key not in KEPT:
        KEPT[key] = make().detach().clone()
    return KEPT[key]


each_way = pytest.mark.parametrize("way", WAYS)


def called(model: Callable[..., Any], inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


def gradient(model: nn.Module, criterion: Any, inputs: Any, targets: Any) -> Tensor:
    weights = weights_of(model)
    loss = criterion(called(model, inputs), targets)
    if not loss.requires_grad:
        return torch.cat([torch.zeros_like(value).reshape(-1) for value in weights])
    parts = torch.autograd.grad(loss, weights, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def differences(model: nn.Module, criterion: Any, inputs: Any, targets: Any) -> Tensor:
    """The Hessian, (P, P), by extrapolated central differences of the module's own gradient; the model is put back."""
    rows = []
    for value in weights_of(model):
        here = value.data
        for k in range(value.numel()):
            ends = {}
            for step in (STEP, -STEP, STEP / 2, -STEP / 2):
                moved = here.clone(memory_format=torch.contiguous_format)
                moved.view(-1)[k] += step
                value.data = moved
                ends[step] = gradient(model, criterion, inputs, targets)
            wide, narrow = ((ends[h] - ends[-h]) / (2 * h) for h in (STEP, STEP / 2))
            rows.append((4 * narrow - wide) / 3)
        value.data = here
    return torch.stack(rows)


def gauss_newton(model: nn.Module, criterion: Any, inputs: Any, targets: Any) -> Tensor:
    """JᵀΛJ for one output tensor: J by one backward pass for each output, Λ by two through the criterion."""
    outputs = called(model, inputs)
    weights = weights_of(model)
    rows = [
        torch.cat(
            [
                part.reshape(-1)
                for part in torch.autograd.grad(f, weights, retain_graph=True, materialize_grads=True)
            ]
        )
        for f in outputs.reshape(-1)
    ]
    jacobian, shape = torch.stack(rows).detach(), outputs.shape
    curve = torch.autograd.functional.hessian(
        lambda flat: criterion(flat.reshape(shape), targets), outputs.detach().reshape(-1)
    )
    return jacobian.T @ curve @ jacobian


def off(found: Tensor, expected: Tensor) -> float:
    """How far off a matrix is, relative to its size."""
    return float((found.double() - expected).norm() / expected.norm())


def is_right(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    return found.shape == expected.shape and off(found, expected) <= tolerance


def assert_right(
    way: str,
    problem: Sequence[Any],
    expected: Tensor,
    tolerance: float = TOLERANCE,
    may_refuse: Sequence[str] = (),
    **options: Any,
) -> None:
    """The matrix is right; some ways may refuse it in one line, in place of `auto` with verify=False as with it.

    problem: model, criterion, inputs, targets.
    """
    try:
        found = hessian(*problem, strategy=WAYS[way], **options)
    except PipelineError as error:
        line = str(error)
    else:
        assert is_right(found, expected, tolerance), f"{way}: off by {off(found, expected):.2g} of its size"
        return
    assert way in may_refuse, f"{way} refuses: {line}"
    assert "\n" not in line


def assert_right_or_refused(
    way: str, problem: Sequence[Any], expected: Tensor, tolerance: float = TOLERANCE, **options: Any
) -> None:
    assert_right(way, problem, expected, tolerance, tuple(WAYS), **options)


def assert_refused(problem: Sequence[Any], match: str, **options: Any) -> str:
    """One line that says what is wrong."""
    with pytest.raises(PipelineError, match=match) as caught:
        hessian(*problem, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def net(*sizes: int) -> nn.Sequential:
    """Linear layers and tanh."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def data(fan_in: int = 3, fan_out: int = 2, n: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(n, fan_in), torch.randn(n, fan_out)
