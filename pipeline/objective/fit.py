"""The trial that tells whether model, criterion and data belong together, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError, first_line, must_reach_user
from pipeline.objective.batch import Batch, Inputs
from pipeline.objective.evaluation import IGNORED, Criterion, evaluating, predict
from pipeline.objective.trees import Tree

NEED_ONE_SHAPE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
)  # which broadcast (N,) with (N, 1) to (N, N)


def check_fit(model: nn.Module, criterion: Criterion, batch: Batch) -> None:
    """Try the first two samples, and those with the lowest and the highest whole numbers: labels, or ids.

    Raises:
        PipelineError: the model cannot read them, or the criterion cannot judge what comes out.
    """
    with evaluating(model), torch.no_grad():
        for few in _trials(batch):
            _check_few(model, criterion, few, batch)


def _trials(batch: Batch) -> Iterator[Batch]:
    yield batch.chunk(0, 2)
    n = batch.num_samples
    leaves = Tree.of(tuple(batch), every=True).tensors
    if n < 3 or any(entries != 1 for entries in batch.counted()):
        return
    for leaf in leaves:
        if leaf.dtype in (torch.int32, torch.int64) and leaf.numel():
            rows = leaf.reshape(n, -1)
            ends = torch.stack([rows.amin(1).argmin(), rows.amax(1).argmax()])
            yield Batch(
                *Tree.of(tuple(batch), every=True).like([each[ends.to(each.device)] for each in leaves])
            )


def _check_few(model: nn.Module, criterion: Criterion, few: Batch, batch: Batch) -> None:
    name = type(model).__name__
    try:
        outputs = predict(model, few.inputs)
    except Exception as error:  # a model may raise anything
        if must_reach_user(error):
            raise
        raise PipelineError(
            f"{name} does not fit the data: on {_shape(few.inputs)} it says {_line(error)!r}: "
            f"{_remedy(batch.inputs, error)}."
        ) from error
    if isinstance(criterion, NEED_ONE_SHAPE) and _shape(outputs) != _shape(few.targets):
        raise PipelineError(
            f"{type(criterion).__name__} of outputs of {_shape(outputs)} and targets of {_shape(few.targets)} would "
            "take each output against each target: let the model return the targets' shape."
        )
    if isinstance(outputs, Tensor) and outputs.is_floating_point():
        outputs = outputs.detach().requires_grad_()
    try:
        with torch.enable_grad():
            loss = criterion(outputs, few.targets)
    except Exception as error:  # so may a criterion
        if must_reach_user(error):
            raise
        raise PipelineError(
            f"the criterion does not fit {name} and the data: on outputs {_shape(outputs)} and targets "
            f"{_shape(few.targets)} it says {_line(error)!r}: {_remedy_of_criterion(batch.targets, error)}."
        ) from error
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        raise PipelineError(
            f"the criterion gives {_shape(loss)}: one number is needed, reduce by mean or sum."
        )
    if isinstance(outputs, Tensor) and outputs.requires_grad and not loss.requires_grad:
        raise PipelineError(
            "the criterion's value depends on the outputs by no operation that torch can differentiate (item, numpy, "
            "detach or argmax cut it off): compute it by operations on tensors."
        )


def _remedy(inputs: Inputs, error: Exception) -> str:
    """What to do about a model that cannot read its inputs."""
    whole = [leaf for leaf in Tree.of(inputs, every=True).tensors if not leaf.is_floating_point()]
    if whole and "out of range" in str(error):
        highest = max(int(leaf.max()) for leaf in whole)
        return (
            f"the inputs hold whole numbers up to {highest}, give the model a table of at least {highest + 1}"
        )
    if whole and re.search("dtype|type|Long|Byte", str(error)):
        return "inputs are whole numbers: for values give data.as_float=true, for pixels data.scale=true"
    if isinstance(inputs, dict) and "keyword argument" in str(error):
        return f"inputs are called {', '.join(inputs)}, as the parameters of its forward must be"
    return "check model.input_shape"


def _remedy_of_criterion(targets: Any, error: Exception) -> str:
    if isinstance(targets, Tensor) and not targets.is_floating_point() and "out of bounds" in str(error):
        counted = targets[targets != IGNORED]
        return (
            f"labels run from {int(counted.min())} to {int(counted.max())}, number them from 0 and give the model "
            f"{int(counted.max()) + 1} outputs"
        )
    return "choose another criterion"


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _line(error: Exception) -> str:
    line = first_line(error)
    usual = isinstance(error, RuntimeError | TypeError | ValueError | IndexError)
    return line if usual else f"{type(error).__name__}: {line}"
