from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pipeline.criterion.labels import REDUCTIONS, check_labels, check_range, misfit
from pipeline.criterion.outputs import logits_of
from pipeline.validation import check_bool, check_choice, check_number

REMEDY = (
    "give integer labels (data.map_labels=true makes them of whole floats), or choose criterion=squared_error for "
    "values"
)


@dataclass(frozen=True)
class CrossEntropy:
    """-log softmax(f)_y for logits f and label y, averaged or summed over samples.

    Logits (N, C) go with labels (N,), logits (N, C, T) with labels (N, T), where every position counts as a sample;
    targets of the outputs' own shape are the probabilities of the classes.

    Of outputs that are an object, a mapping or a tuple, the logits are taken.

    classes_last: outputs are (N, T, C).
    label_smoothing: ε in [0, 1): the target is (1 - ε) one-hot(y) + ε/C.
    """

    reduction: str = "mean"
    label_smoothing: float = 0.0
    classes_last: bool = False

    def __post_init__(self) -> None:
        check_choice("criterion.reduction", self.reduction, REDUCTIONS)
        check_number("criterion.label_smoothing", self.label_smoothing, minimum=0, below=1)
        check_bool("criterion.classes_last", self.classes_last)

    def scores_and_labels(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C, ...) and their targets."""
        logits = logits_of("cross_entropy", outputs)
        if self.classes_last and logits.ndim > 2:
            targets = targets.movedim(-1, 1) if targets.is_floating_point() else targets
            logits = logits.movedim(-1, 1)
        return logits, targets

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        outputs, targets = self.scores_and_labels(outputs, targets)
        if outputs.ndim < 2:
            raise misfit("cross_entropy", outputs, targets, "outputs must be (N, C), or (N, C, T)")
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise misfit("cross_entropy", outputs, targets, REMEDY)
            if outputs.shape[1] == 1:
                raise misfit("cross_entropy", outputs, targets, "of a single output it is 0; " + REMEDY)
            check_range("cross_entropy", outputs, targets, 1, REMEDY)
        else:
            if targets.shape != outputs.shape[:1] + outputs.shape[2:]:
                raise misfit("cross_entropy", outputs, targets, _remedy(outputs, targets))
            check_labels("cross_entropy", outputs, targets)
            targets = targets.long()
        smoothing = self.label_smoothing
        return F.cross_entropy(outputs, targets, reduction=self.reduction, label_smoothing=smoothing)


def _remedy(outputs: Tensor, labels: Tensor) -> str:
    if outputs.ndim > 2 and outputs.shape[:-1] == labels.shape:
        return "criterion.classes_last=true takes outputs (N, T, C), criterion=next_token the loss of the next token"
    if outputs.ndim == labels.ndim == 2:
        return "outputs (N, C) need labels (N,), data.map_labels=true makes them of one-hot rows"
    return "outputs (N, C, ...) need labels (N, ...)"
