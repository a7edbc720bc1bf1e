"""Forward-mode derivatives of gradients, and the errors of PyTorch in the pipeline's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch.func import jvp

from pipeline.errors import StrategyError, first_line, must_reach_user

Point = TypeVar("Point")
Result = TypeVar("Result")


def directional_derivative(function: Callable[[Point], Result], point: Point, tangent: Point) -> Result:
    """d/dε function(point + ε tangent); point and tangent are tensors or trees of them.

    Raises:
        StrategyError: some layer or loss cannot be differentiated in forward mode.
    """
    with named_errors("in forward mode", "use strategy=triangular"):
        result: Result = jvp(function, (point,), (tangent,))[1]
    return result


@contextmanager
def named_errors(how: str, remedy: str) -> Iterator[None]:
    """Say in one line that PyTorch cannot differentiate the model in some way, and what to do instead.

    Raises:
        StrategyError: a derivative is missing.
    """
    try:
        yield
    except Exception as error:  # a layer may raise anything in a way of differentiation that it does not know
        if must_reach_user(error):
            raise
        raise StrategyError(
            f"the model or its loss cannot be differentiated {how} ({first_line(error)})", remedy
        ) from error
