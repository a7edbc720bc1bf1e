"""Slopes of a criterion by the outputs, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad
from torch.utils import _pytree as pytree

from pipeline.objective import Criterion


def slopes_of(criterion: Criterion, outputs: Any, targets: Any) -> Any:
    """∂L/∂f, a tree like the outputs."""
    return grad(lambda f: criterion(f, targets))(outputs)


def along(slopes: Any, changes: Any) -> Tensor:
    """The slope of each sample along the change of its outputs, (N,)."""
    pairs = zip(pytree.tree_leaves(slopes), pytree.tree_leaves(changes), strict=True)
    return torch.stack(
        [(one * other).flatten(1).sum(1) if one.ndim > 1 else one * other for one, other in pairs]
    ).sum(0)
