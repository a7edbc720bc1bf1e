"""A small classifier in float64, and its samples, whole or in batches."""

from __future__ import annotations

import torch
from support.cases import mlp
from torch import Tensor, nn


def classes(num_samples: int = 23) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    model = mlp(4, 6, 3).double()
    return model, (torch.randn(num_samples, 4, dtype=torch.float64), torch.randint(3, (num_samples,)))


def cut(pair: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(pair[0].split(sizes), pair[1].split(sizes), strict=True))
