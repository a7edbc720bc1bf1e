from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.training.gradient_descent import GradientTraining
from pipeline.validation import check_number


@dataclass(frozen=True, kw_only=True)
class Adam(GradientTraining):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) on minibatches.

    Beside each checkpoint it leaves its second moments, from which the aggregation takes λmax of the matrix that Adam's
    steps see: a file of the size of the weights.

    beta1, beta2: of the running means of the gradient and of its square.
    """

    learning_rate: float = 0.005
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("training.beta1", self.beta1, minimum=0, below=1)
        check_number("training.beta2", self.beta2, minimum=0, below=1)

    def optimizer(self, weights: list[nn.Parameter]) -> Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(weights, self.learning_rate, betas, weight_decay=self.weight_decay)
