from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.criterion.labels import REDUCTIONS, check_labels, misfit
from pipeline.criterion.outputs import logits_of
from pipeline.validation import check_choice


@dataclass(frozen=True)
class SquaredError:
    """½ ‖f - y‖² of a sample, averaged or summed over samples: its Hessian by f is the identity.

    Unlike torch's MSELoss it has the factor ½, and sums over the outputs of a sample. Targets have the shape of the
    outputs; integers of shape (N,) are labels and become one-hot vectors.
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_choice("criterion.reduction", self.reduction, REDUCTIONS)

    def scores_and_labels(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs, as one tensor, and their targets."""
        return logits_of("squared_error", outputs), targets

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        outputs, targets = self.scores_and_labels(outputs, targets)
        if not targets.is_floating_point() and targets.ndim == 1 and outputs.ndim == 2:
            check_labels("squared_error", outputs, targets)
            targets = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)[targets.long()]
        if targets.shape != outputs.shape:
            raise misfit(
                "squared_error", outputs, targets, "give values of the outputs' shape, or labels (N,)"
            )
        total: Tensor = 0.5 * (outputs - targets).square().sum()
        return total / len(outputs) if self.reduction == "mean" else total
