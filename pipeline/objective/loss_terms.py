"""The terms that a mean loss is over, where its criterion tells that these are not the samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.objective.batch import Batch

COUNTS_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)


def num_terms(criterion: Any, batch: Batch) -> float | None:
    """What the criterion's `num_terms(targets)` gives; for torch's losses of labels, the labels that count, each with
    the weight of its class; None for all others, whose batches are weighted by their samples.
    """
    if (own := getattr(criterion, "num_terms", None)) is not None:
        return float(own(batch.targets))
    return num_labels(criterion, batch.targets) if isinstance(criterion, COUNTS_LABELS) else None


def num_labels(criterion: Any, targets: Tensor) -> float:
    """Labels that count, each with the weight of its class; for probabilities (N, C, ...) their N·...."""
    if targets.is_floating_point():
        return float(targets.numel() / targets.shape[1]) if targets.ndim > 1 else 1.0
    counted = targets[targets != getattr(criterion, "ignore_index", -100)]
    weight = getattr(criterion, "weight", None)
    return float(
        counted.numel() if weight is None else weight.double().to(counted.device)[counted.long()].sum()
    )
