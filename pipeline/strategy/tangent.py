"""Forward-mode derivatives of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp
from torch.overrides import TorchFunctionMode

from pipeline.errors import PipelineError

Point = TypeVar("Point")
Result = TypeVar("Result")


def push(function: Callable[[Point], Result], point: Point, tangent: Point) -> Result:
    """d/dε function(point + ε tangent); point and tangent are tensors or trees of them.

    Raises:
        PipelineError: some layer or loss cannot be differentiated in forward mode.
    """
    try:
        with _PlainSquaredError():
            result: Result = jvp(function, (point,), (tangent,))[1]
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        raise PipelineError(
            f"the model or its loss cannot be differentiated in forward mode ({line}): use strategy=triangular."
        ) from error
    return result


class _PlainSquaredError(TorchFunctionMode):
    """Spells `mse_loss` out.

    Where one of its two arguments has no tangent, the forward derivative of its backward writes into PyTorch's
    shared symbolic zero and fails (2.11 and 2.13).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return (_squared_error if func is F.mse_loss else func)(*args, **kwargs)


def _squared_error(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    reduction = kwargs.pop("reduction", "mean")
    if args or any(value is not None for value in kwargs.values()):  # weights, or the options of old
        return F.mse_loss(input, target, *args, **{**kwargs, "reduction": reduction})
    squares = (input - target).square()
    return squares.mean() if reduction == "mean" else squares.sum() if reduction == "sum" else squares
