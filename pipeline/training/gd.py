from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.training.gradient_descent import GradientTraining


@dataclass(frozen=True, kw_only=True)
class GD(GradientTraining):
    """Gradient descent on all training samples: w ← w - learning_rate · gradient.

    The method whose largest Hessian eigenvalue comes to rest at 2 / learning_rate (Cohen et al. 2021,
    arXiv:2103.00065).
    """

    batch_size: None = field(default=None, init=False)

    def optimizer(self, weights: list[nn.Parameter]) -> Optimizer:
        return torch.optim.SGD(weights, self.learning_rate, weight_decay=self.weight_decay)
