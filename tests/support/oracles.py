"""What the Hessian of a case is, found on the plain module without any code of the pipeline."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from support.cases import Problem
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

STEP = 2.0**-13  # exact in binary, so that a displaced weight is displaced by exactly this


class FiniteDifferences(NamedTuple):
    matrix: Tensor
    tolerance: float


def weights_of(problem: Problem) -> list[Tensor]:
    """The tensors to differentiate by, in the order of `named_parameters()`."""
    patterns = [problem.parameters] if isinstance(problem.parameters, str) else problem.parameters
    chosen = [
        value
        for name, value in problem.model.named_parameters()
        if (
            value.requires_grad
            if patterns is None
            else any(fnmatchcase(name, pattern) for pattern in patterns)
        )
    ]
    return [value.requires_grad_() for value in chosen]


def loss_of(problem: Problem) -> Tensor:
    inputs, targets = problem.batch
    if isinstance(inputs, dict):
        outputs = problem.model(**inputs)
    else:
        outputs = problem.model(*inputs) if isinstance(inputs, tuple) else problem.model(inputs)
    return problem.criterion(outputs, targets)


def gradient(problem: Problem, weights: list[Tensor], create_graph: bool = False) -> Tensor:
    parts = torch.autograd.grad(
        loss_of(problem), weights, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.reshape(-1) for part in parts])


def double_backward(problem: Problem) -> Tensor:
    """Row i is the derivative of the sum of g[i] and of zero times all weights, so that every row has a graph.

    Fused attention has no second derivative, so it takes the form in matrix products.
    """
    weights = weights_of(problem)
    with sdpa_kernel(SDPBackend.MATH):
        flat = gradient(problem, weights, create_graph=True) + 0 * sum(value.sum() for value in weights)
    rows = [torch.autograd.grad(g, weights, retain_graph=True, materialize_grads=True) for g in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def finite_differences(problem: Problem) -> FiniteDifferences:
    """Central differences D of the gradient with steps h and h/2, extrapolated: (4 D(h/2) - D(h)) / 3.

    tolerance: the truncation error of D(h/2) is |D(h/2) - D(h)| / 3 to leading order, and the extrapolation removes
    that order, so this difference bounds what is left. To it comes the rounding of two gradients, some tens of
    units in the last place of numbers of order 1 + |g|, divided by h. A kink of a piecewise linear net between the
    displaced points would make D(h) and D(h/2) differ by much, and is therefore noticed.
    """
    weights = weights_of(problem)
    coarse, fine, largest = [], [], 0.0
    for value in weights:
        flat = value.detach().view(-1)
        for k in range(len(flat)):
            here = flat[k].clone()
            differences = []
            for step in (STEP, STEP / 2):
                flat[k] = here + step
                above = gradient(problem, weights)
                flat[k] = here - step
                differences.append((above - gradient(problem, weights)) / (2 * step))
                largest = max(largest, above.abs().max().item())
            flat[k] = here
            coarse.append(differences[0])
            fine.append(differences[1])
    wide, narrow = torch.stack(coarse), torch.stack(fine)
    rounding = 64 * torch.finfo(wide.dtype).eps * (1 + largest) / STEP
    return FiniteDifferences((4 * narrow - wide) / 3, (wide - narrow).abs().max().item() + rounding)
