"""Checks of outputs against targets. A label out of range would stop a GPU for the rest of the process."""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import PipelineError

REDUCTIONS = ("mean", "sum")


def check_range(criterion: str, outputs: Tensor, targets: Tensor, highest: int, remedy: str) -> None:
    """Refuse targets outside 0..highest.

    Inside a vmap over samples a target has no value that could be looked at; there nothing is checked.
    """
    try:
        low, high = targets.min().item(), targets.max().item()
    except RuntimeError:
        return
    if not (low >= 0 and high <= highest):
        raise PipelineError(
            f"criterion={criterion}: targets run from {low:g} to {high:g}, but outputs of shape "
            f"{tuple(outputs.shape)} allow 0 to {highest}: {remedy}."
        )


def check_labels(criterion: str, outputs: Tensor, labels: Tensor) -> None:
    """Refuse labels that are not 0..C-1, for outputs (N, C, ...)."""
    remedy = "number the classes from 0, or give the model more outputs (data.num_outputs)"
    check_range(criterion, outputs, labels, outputs.shape[1] - 1, remedy)


def misfit(criterion: str, outputs: Tensor, targets: Tensor, remedy: str) -> PipelineError:
    """The error for shapes that do not belong together."""
    kind = "values" if targets.is_floating_point() else "labels"
    return PipelineError(
        f"criterion={criterion}: outputs have shape {tuple(outputs.shape)}, targets are {kind} of shape "
        f"{tuple(targets.shape)}: {remedy}."
    )
