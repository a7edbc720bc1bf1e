from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pipeline.criterion.labels import REDUCTIONS, check_range, misfit
from pipeline.criterion.outputs import logits_of
from pipeline.validation import check_choice


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """-y log σ(f) - (1 - y) log(1 - σ(f)) for a logit f and a target y in [0, 1].

    Targets have the shape of the outputs, integers 0 and 1 or values between; with one output a sample, labels (N,)
    will do. As in torch, `mean` divides by all N·K outputs, not by N; `sum` divides by nothing.
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_choice("criterion.reduction", self.reduction, REDUCTIONS)

    def scores_and_labels(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs, as one tensor, and their targets."""
        return logits_of("bce", outputs), targets

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        outputs, targets = self.scores_and_labels(outputs, targets)
        if targets.ndim == 1 and outputs.shape == (len(targets), 1):
            targets = targets[:, None]
        if targets.shape != outputs.shape:
            raise misfit(
                "bce",
                outputs,
                targets,
                "give targets of the outputs' shape, or data.num_outputs=1 for labels 0 and 1",
            )
        check_range("bce", outputs, targets, 1, "choose criterion=cross_entropy for more classes than two")
        return F.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype), reduction=self.reduction
        )
