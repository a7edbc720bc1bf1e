"""Which entries of a model's inputs, targets and outputs belong to which sample, found out by a trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import PipelineError, is_out_of_memory
from pipeline.objective.batch import Batch, Inputs
from pipeline.objective.objective import Params, leaves_of
from pipeline.objective.trees import Tree

Predict = Callable[[Params, Inputs], Any]


def tensors_of(predict: Predict, params: Params, inputs: Inputs, every: bool = True) -> tuple[Tensor, ...]:
    """The tensors that the model returns, without a graph; every: those of whole numbers too."""
    return tuple(value.detach() for value in Tree.of(predict(leaves_of(params), inputs), every).tensors)


def squares_count_samples(predict: Predict, params: Params, batch: Batch) -> bool | None:
    """Whether the batch can be taken to pieces, and how: the argument `squares` of `Batch.chunk`; None if it cannot.

    The model is run without the last sample: what it returns for the others must be what it returned before, in the
    first entries of the first dimension.
    """
    n = batch.num_samples
    if n < 2:
        return None
    whole = tensors_of(predict, params, batch.inputs)
    for squares in (True, False):
        part = _without_the_last(predict, params, batch, squares)
        if part is None or len(part) != len(whole):
            continue
        if all(_shrinks(a, b, n) and _is_start(a, b) for a, b in zip(part, whole, strict=True)):
            return squares
    return None


def check_samples_apart(predict: Predict, params: Params, batch: Batch, what: str) -> None:
    """Refuse what is taken sample by sample where a sample's outputs depend on other samples.

    Raises:
        PipelineError: they do, or are not in the order of the samples.
    """
    if batch.num_samples > 1 and squares_count_samples(predict, params, batch) is None:
        raise PipelineError(
            f"{what} needs the outputs of a sample alone, but the model returns others then, or in another "
            "order (BatchNorm "
            "in training mode, a graph?): use model.eval(), or hessian for the whole batch."
        )


def check_outputs_count_samples(
    predict: Predict, params: Params, batch: Batch, loss: Callable[[Any], Tensor], what: str
) -> None:
    """Refuse a sum over samples where it is not known which of the model's outputs are of which sample.

    Of the floating-point tensors that the loss depends on, as a function of the outputs. They are known, where the
    first entries of the outputs are those of the first samples, and where the outputs have as many entries as there
    are samples, though each may depend on all samples, as the nodes of a graph do.

    Raises:
        PipelineError: it is not known.
    """
    n = batch.num_samples
    if n == 1:
        return
    tree = Tree.of(predict(leaves_of(params), batch.inputs))
    leaves = [value.detach().requires_grad_() for value in tree.tensors]
    value = loss(tree.like(leaves))
    slopes = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else ()
    used = [index for index, slope in enumerate(slopes) if slope is not None]
    whole = [leaves[index].detach() for index in used]
    ran = False
    for squares in (True, False):
        part = _without_the_last(predict, params, batch, squares, every=False)
        if part is None or len(part) != len(leaves):
            continue
        ran = True
        pairs = [(part[index], one) for index, one in zip(used, whole, strict=True)]
        if all(_shrinks(a, b, n) and (len(b) == n or _is_start(a, b)) for a, b in pairs):
            return
    if not ran and all(one.ndim > 0 and len(one) == n for one in whole):
        return
    raise PipelineError(
        f"{what} is a sum over samples, but which of the model's outputs belong to which of the {n} "
        "samples is not known "
        "from their first dimension: let the model return (N, ...), or use matrix=ggn."
    )


def _without_the_last(
    predict: Predict, params: Params, batch: Batch, squares: bool, every: bool = True
) -> tuple[Tensor, ...] | None:
    try:
        return tensors_of(predict, params, batch.chunk(0, batch.num_samples - 1, squares).inputs, every)
    except Exception as error:  # a model may raise anything where its inputs do not fit together
        if is_out_of_memory(error):
            raise
        return None


def _shrinks(part: Tensor, whole: Tensor, n: int) -> bool:
    return part.ndim > 0 and part.shape[1:] == whole.shape[1:] and len(part) * n == len(whole) * (n - 1)


def _is_start(part: Tensor, whole: Tensor) -> bool:
    return are_alike(part, whole[: len(part)])


def are_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values, but for their rounding."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = float(other.abs().nan_to_num().max()) if other.numel() else 0.0
    tolerance = max(ALIKE, torch.finfo(one.dtype).eps ** 0.5) * scale
    return torch.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


ALIKE = 1e-6  # relative to the largest, for outputs that are computed in another order, or in single precision inside
