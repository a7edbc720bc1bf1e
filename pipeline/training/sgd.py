from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.training.gradient_descent import GradientTraining
from pipeline.validation import check_number


@dataclass(frozen=True, kw_only=True)
class SGD(GradientTraining):
    """Stochastic gradient descent on minibatches: v ← momentum · v + gradient, w ← w - learning_rate · v."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("training.momentum", self.momentum, minimum=0, below=1)

    def optimizer(self, weights: list[nn.Parameter]) -> Optimizer:
        return torch.optim.SGD(weights, self.learning_rate, self.momentum, weight_decay=self.weight_decay)
