"""What the laws compute with: seeded nets and samples in float64, and matrices by one exact strategy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import hessian
from pipeline.layout import Layout
from pipeline.objective import Criterion
from pipeline.results import Check
from pipeline.shards import Array

ROUNDING = 1e-10  # of float64 sums, relative to the largest entry or eigenvalue


def matrix(
    net: nn.Module,
    criterion: Criterion,
    inputs: Tensor,
    targets: Tensor,
    which: str = "hessian",
    parameters: str | None = None,
) -> Tensor:
    """The matrix of a small net, (P, P), by Hessian-vector products; certified as everything that `hessian` gives."""
    return hessian(net, criterion, inputs, targets, strategy="hvp", matrix=which, parameters=parameters)


def perceptron(sizes: Sequence[int], activation: nn.Module | None = None, bias: bool = True) -> nn.Sequential:
    """Linear layers of these widths in float64, with the activation between them; None: none, a deep linear net."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers.append(nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64))
        if activation is not None:
            layers.append(activation)
    return nn.Sequential(*layers[: -1 if activation is not None else None])


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f − y‖², the mean over samples: its second derivative by the outputs of a sample is I / N."""
    return (outputs - targets).square().sum() / (2 * len(outputs))


def gradient(net: nn.Module, criterion: Criterion, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the loss by the weights, (P,), by a plain backward pass."""
    parts = torch.autograd.grad(criterion(net(inputs), targets), tuple(net.parameters()))
    return torch.cat([part.flatten() for part in parts])


def spans(net: nn.Module) -> dict[str, slice]:
    """The rows of each layer (what a module has of its own), by its name."""
    return dict(Layout.of(dict(net.named_parameters())).layers())


def normal(*shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64)


def exponent(x: Array, y: Array) -> float:
    """The exponent k of y ∝ x^k, by least squares of logarithms.

    >>> round(exponent(np.array([1.0, 2.0, 4.0]), np.array([3.0, 24.0, 192.0])), 6)
    3.0
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def agree(
    key: str,
    name: str,
    measured: Tensor | Array,
    expected: Tensor | Array,
    scale: float,
    tolerance: float = ROUNDING,
) -> Check:
    """Whether the entries of two arrays agree: the largest difference over `scale` is zero to rounding."""
    difference: Any = np.abs(np.asarray(measured) - np.asarray(expected))
    return Check(
        key, f"{name}: largest relative difference", float(difference.max()) / scale, "=", 0.0, tolerance
    )
