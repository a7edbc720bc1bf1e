"""What every entry point from Python does first: the device, modes of PyTorch, a loss that can be computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import isfinite
from threading import RLock

import torch

from pipeline.errors import PipelineError, first_line, must_reach_user
from pipeline.objective.batch import Batch
from pipeline.objective.objective import Objective, Params, leaves_of

_one_thread = RLock()  # of the process


def check_loss(objective: Objective, params: Params, batch: Batch) -> None:
    """Refuse a loss that cannot be computed, or is not finite, before it is differentiated.

    Raises:
        PipelineError: with the line that the model or the criterion raised.
    """
    try:
        loss = float(objective.loss(leaves_of(params), batch).detach())
    except Exception as error:  # whatever the user's model and criterion raise
        if must_reach_user(error):
            raise
        raise PipelineError(
            f"the loss cannot be computed on these inputs and targets ({type(error).__name__}: {first_line(error)}): "
            "call criterion(model(inputs), targets) by itself to see where."
        ) from error
    if not isfinite(loss):
        remedy = "" if next(iter(params.values())).dtype == torch.float64 else ", or use dtype=torch.float64"
        raise PipelineError(f"the loss is {loss}: look at the weights, the inputs and the targets{remedy}.")


@contextmanager
def differentiation() -> Iterator[None]:
    """What every entry point computes in: gradients on, inference mode and autocast off, no other thread beside it.

    Autocast would round to half precision, which has no second derivatives to speak of. The levels of forward mode are
    those of the process, and a module's weights are other tensors for a while: two threads would see each other's.
    """
    with ExitStack() as stack:
        stack.enter_context(_one_thread)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def device_named(device: torch.device | str | None) -> torch.device | None:
    """The device, None for the model's own.

    Raises:
        PipelineError: PyTorch does not know it.
    """
    try:
        return torch.device(device) if device is not None else None
    except (RuntimeError, TypeError) as error:
        raise PipelineError(
            f"device={device!r} is unknown: choose 'cpu', 'cuda' or another that PyTorch knows."
        ) from error
