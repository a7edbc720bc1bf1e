from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pipeline.criterion.labels import REDUCTIONS, check_labels, check_range, misfit
from pipeline.validation import check_choice, check_number

REMEDY = (
    "give integer labels (data.map_labels=true makes them of whole floats), or choose criterion=squared_error for "
    "values"
)


@dataclass(frozen=True)
class CrossEntropy:
    """-log softmax(f)_y for logits f and label y, averaged or summed over samples.

    Logits (N, C) go with labels (N,), logits (N, C, T) with labels (N, T), where every position counts as a sample;
    targets of the outputs' own shape are the probabilities of the classes.

    label_smoothing: ε in [0, 1): the target is (1 - ε) one-hot(y) + ε/C.
    """

    reduction: str = "mean"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_choice("criterion.reduction", self.reduction, REDUCTIONS)
        check_number("criterion.label_smoothing", self.label_smoothing, minimum=0, below=1)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.ndim < 2:
            raise misfit("cross_entropy", outputs, targets, "outputs must be (N, C), or (N, C, T)")
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise misfit("cross_entropy", outputs, targets, REMEDY)
            check_range("cross_entropy", outputs, targets, 1, REMEDY)
        else:
            if targets.shape != outputs.shape[:1] + outputs.shape[2:]:
                raise misfit("cross_entropy", outputs, targets, "outputs (N, C, ...) need labels (N, ...)")
            check_labels("cross_entropy", outputs, targets)
            targets = targets.long()
        smoothing = self.label_smoothing
        return F.cross_entropy(outputs, targets, reduction=self.reduction, label_smoothing=smoothing)
