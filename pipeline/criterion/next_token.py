from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.criterion.labels import REDUCTIONS, check_range, misfit
from pipeline.criterion.outputs import logits_of
from pipeline.validation import check_choice

IGNORED = -100  # as torch's losses have it


@dataclass(frozen=True)
class NextToken:
    """The loss of a language model: -log softmax(f_t) at token t + 1, for logits f (N, T, V) and token ids (N, T).

    `mean` is over samples, of the mean over the tokens of a sample that count; those of id -100 do not. So the losses
    of batches, weighted by their samples, give that of all; where all samples have as many tokens it is the mean over
    tokens, as Hugging Face's models take it of their `labels`. `sum` is over all tokens that count.
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_choice("criterion.reduction", self.reduction, REDUCTIONS)

    def scores_and_labels(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, V, T - 1) and the ids (N, T - 1) that they are for.

        Raises:
            PipelineError: shapes do not belong together.
        """
        logits = logits_of("next_token", outputs)
        if (
            logits.ndim != 3
            or targets.is_floating_point()
            or targets.shape != logits.shape[:2]
            or logits.shape[1] < 2
        ):
            raise misfit(
                "next_token",
                logits,
                targets,
                "outputs (N, T, V) need the ids of the tokens (N, T), T at least 2",
            )
        return logits[:, :-1].movedim(2, 1), targets[:, 1:].long()

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        logits, ids = self.scores_and_labels(outputs, targets)
        counted = ids != IGNORED
        remedy = "give the model a larger vocabulary, or ids from 0"
        check_range("next_token", logits, torch.where(counted, ids, 0), logits.shape[1] - 1, remedy)
        losses = F.cross_entropy(logits, ids, reduction="none", ignore_index=IGNORED)  # (N, T - 1)
        if self.reduction == "sum":
            return losses.sum()
        return (losses.sum(1) / counted.sum(1).clamp(min=1)).mean()
