"""Slopes of a criterion by the outputs, sample by sample, and the second moment of what they make of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from pipeline.objective import Criterion, Product, Reference, Tree


def output_gradient(criterion: Criterion, outputs: Any, targets: Any) -> tuple[Tensor, ...]:
    """∂L/∂f, for each floating-point tensor of the outputs."""
    tree = Tree.of(outputs)

    def loss(*values: Tensor) -> Any:
        return criterion(tree.like(values), targets)

    slopes: tuple[Tensor, ...] = grad(loss, tuple(range(len(tree.tensors))))(*tree.tensors)
    return slopes


def gradient_along(slopes: Sequence[Tensor], changes: Sequence[Tensor], num_samples: int) -> Tensor:
    """The slope of each sample along the change of its outputs, (N,).

    What does not count samples is left out: the loss does not depend on it, see `check_outputs_count_samples`.
    """
    each = [
        (one * other).reshape(num_samples, -1).sum(1)
        for one, other in zip(slopes, changes, strict=True)
        if one.ndim > 0 and len(one) % num_samples == 0
    ]
    return torch.stack(each).sum(0)


def moments(
    reference: Reference,
    direction: Tensor,
    targets: Sequence[Any],
    scale: float,
    by_autograd: bool,
    num_samples: int,
) -> Product:
    """Jᵀ Σ c_n (c_n · J_n v) over samples and sets of targets, times `scale`: J v by differences of the outputs."""
    outputs, n = reference.outputs(), num_samples
    if by_autograd:
        pushed, flat = reference.push_by_autograd(direction), Product(direction, 0.0)
    else:
        pushed, flat = reference.push(direction)
    total = [torch.zeros_like(value) for value in pushed]
    for one in targets:
        slopes = reference.slopes(outputs, one)
        moves = gradient_along(slopes, pushed, n)
        for sum_, slope in zip(total, slopes, strict=True):
            if slope.ndim == 0 or len(slope) % n:
                continue
            sum_ += (slope.reshape(n, -1) * moves[:, None]).reshape(slope.shape)
    value = scale * reference.pull(total)
    size = float(torch.stack([part.double().norm() for part in pushed]).norm())
    relative = min(1.0, flat.uncertainty / max(size, 1e-300))
    return Product(value, relative * float(value.norm()) + 1e-14 * float(direction.norm()), flat.noise)
