"""Which entries of a model's inputs, targets and outputs belong to which sample, found out by a trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.objective import Batch, Inputs, Params, leaves_of
from pipeline.trees import Tree

Predict = Callable[[Params, Inputs], Any]


def tensors_of(predict: Predict, params: Params, inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors that the model returns, without a graph."""
    return tuple(value.detach() for value in Tree.of(predict(leaves_of(params), inputs), every=True).tensors)


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
        try:
            part = tensors_of(predict, params, batch.chunk(0, n - 1, squares).inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model may raise anything where its inputs do not fit together
            continue
        if len(part) == len(whole) and all(_is_start(a, b, n) for a, b in zip(part, whole, strict=True)):
            return squares
    return None


def check_samples_apart(predict: Predict, params: Params, batch: Batch, what: str) -> None:
    """Refuse what is a sum over samples where it is not known which outputs are of which sample.

    Raises:
        PipelineError: the model's outputs for a sample depend on others, or are not in the order of the samples.
    """
    if batch.num_samples > 1 and squares_count_samples(predict, params, batch) is None:
        raise PipelineError(
            f"{what} is a sum over samples, but what the model returns for a sample cannot be told from what it returns "
            "for others, or depends on them (BatchNorm in training mode, a graph?): use model.eval(), or matrix=ggn."
        )


def _is_start(part: Tensor, whole: Tensor, n: int) -> bool:
    if part.ndim == 0 or part.shape[1:] != whole.shape[1:] or len(part) * n != len(whole) * (n - 1):
        return False
    if not part.is_floating_point():
        return torch.equal(part, whole[: len(part)])
    scale = float(whole.abs().nan_to_num().max()) if whole.numel() else 0.0
    tolerance = torch.finfo(part.dtype).eps ** 0.75 * scale
    return torch.allclose(part, whole[: len(part)], rtol=0, atol=tolerance, equal_nan=True)
