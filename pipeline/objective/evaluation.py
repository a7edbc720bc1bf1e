"""Loss and accuracy of a model on many samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import must_reach_user
from pipeline.objective.batch import Batch, Inputs
from pipeline.objective.loss_terms import num_terms
from pipeline.objective.observation import observed_first
from pipeline.objective.trees import Tree

Criterion = Callable[[Any, Any], Any]
NUM_AT_ONCE = 4096
OUTPUT_BYTES = 2**30  # of outputs that are judged together
NUM_TRIED = 64  # samples, which tell whether a loss is a sum
IGNORED = -100  # as torch's losses have it, the label of a position of a sequence that does not count


def predict(model: nn.Module, inputs: Inputs) -> Any:
    """The outputs; a tuple of inputs becomes positional arguments, a dict keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def accuracy(outputs: Any, targets: Any) -> float | None:
    """The share of labels that are right, or None where targets are not labels.

    The class is the highest of the outputs (N, C, ...); with one output a sample, class 1 is a positive output.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    if outputs.shape == targets.shape or outputs.shape == (*targets.shape, 1):
        chosen = (outputs.reshape(targets.shape) > 0).long()
    elif outputs.ndim >= 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        chosen = outputs.argmax(1)
    else:
        return None
    counted = targets != IGNORED
    return (chosen == targets)[counted].double().mean().item() if counted.any() else None


def evaluate(model: nn.Module, criterion: Criterion, batch: Batch) -> tuple[float, float | None]:
    """Loss and accuracy over all samples, in eval mode, 4,096 samples at a time.

    Chunks are put together as `criterion.reduction` says: weighted by the terms that their losses are over, see
    `num_terms`, or added. Where it does not say, the outputs of all samples are judged together; where these take more
    than OUTPUT_BYTES, a trial tells a sum from a mean over samples.
    """
    loss, right, num_labels, known = 0.0, 0.0, 0, True
    whole = num_terms(criterion, batch)
    with evaluating(model), torch.no_grad():
        is_sum = cache(lambda: _adds_samples(model, criterion, batch))
        for outputs, chunk in _judged_together(criterion, batch, _predictions(model, batch)):
            terms, weight = num_terms(criterion, chunk), chunk.num_samples / batch.num_samples
            if terms is not None and whole:
                weight = terms / whole
            if weight < 1 and is_sum():
                weight = 1.0
            if weight:  # a mean over no terms is NaN, and counts nothing
                loss += weight * criterion(outputs, chunk.targets).item()
            pair = getattr(criterion, "scores_and_labels", lambda *both: both)
            scores, labels = pair(outputs, chunk.targets)
            if (counted := _num_counted(labels)) > 0:
                correct = accuracy(scores, labels)
                known = known and correct is not None
                right += counted * (correct or 0.0)
                num_labels += counted
    return loss, right / num_labels if known and num_labels else None


def _predictions(model: nn.Module, batch: Batch) -> Iterator[tuple[Any, Batch]]:
    for start in range(0, batch.num_samples, NUM_AT_ONCE):
        chunk = batch.chunk(start, start + NUM_AT_ONCE)
        yield predict(model, chunk.inputs), chunk


def _judged_together(
    criterion: Criterion, batch: Batch, predictions: Iterator[tuple[Any, Batch]]
) -> Iterator[tuple[Any, Batch]]:
    """Outputs and the samples that they are of, all at once where the criterion does not say its reduction."""
    outputs, chunk = next(predictions)
    tensors = Tree.of(outputs, every=True).tensors
    num_bytes = sum(value.nbytes for value in tensors) * batch.num_samples / chunk.num_samples
    counts_samples = all(len(value) == chunk.num_samples for value in tensors if value.ndim)
    if _is_declared(criterion) or num_bytes > OUTPUT_BYTES or not counts_samples:
        yield outputs, chunk
        yield from predictions
        return
    trees = [Tree.of(each, every=True) for each in (outputs, *(more for more, _ in predictions))]
    columns = zip(*(tree.tensors for tree in trees), strict=True)
    yield trees[0].like([torch.cat(parts) if parts[0].ndim else parts[0] for parts in columns]), batch


def _is_declared(criterion: Criterion) -> bool:
    return getattr(criterion, "reduction", None) in ("mean", "sum")


def _adds_samples(model: nn.Module, criterion: Criterion, batch: Batch) -> bool:
    """Whether the loss is a sum: if the criterion does not say so, whether it is twice as large of samples twice."""
    if _is_declared(criterion):
        return bool(criterion.reduction == "sum")  # type: ignore[attr-defined]
    few = batch.chunk(0, NUM_TRIED)
    try:
        once, twice = (criterion(predict(model, each.inputs), each.targets) for each in (few, few.doubled()))
    except Exception as error:  # a criterion may raise anything where it does not take so many outputs
        if must_reach_user(error):
            raise
        return False
    return bool(abs(twice - 2 * once) < abs(twice - once))


def _num_counted(labels: Any) -> int:
    """The labels that an accuracy is over; 1 where targets are none, and there is none to be put together."""
    return int((labels != IGNORED).sum()) if isinstance(labels, Tensor) else 1


def observe(model: nn.Module, criterion: Criterion, train: Batch) -> dict[str, Any]:
    """What tells a model and a criterion from others, for these weights, see `system/evidence.py`."""
    with evaluating(model):
        return observed_first(model, predict, criterion, train)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards for each module the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
