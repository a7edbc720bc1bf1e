"""What a dataset gives: samples that were checked once, so that no later stage meets a NaN or a bad label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError
from pipeline.objective import IGNORED, Batch
from pipeline.validation import check_count


@dataclass(frozen=True)
class Samples:
    """Training samples, test samples where there are any, and the two sizes that a model is built from.

    input_shape: of one sample, without the sample dimension.
    num_outputs: classes where targets are labels (integers), else numbers a target has. With one output, labels are 0
        or 1.
    """

    train: Batch
    test: Batch | None
    input_shape: tuple[int, ...]
    num_outputs: int


def as_samples(loaded: Any) -> Samples:
    """Check what a dataset loaded, a user's own included, and count what it leaves out.

    loaded: has `train`, and perhaps `test`, each a pair (inputs, targets) of tensors, or of tuples or dicts of
        tensors; perhaps `input_shape` and `num_outputs`, else read off the (first) inputs and the targets.

    Raises:
        PipelineError: something is not a tensor, is empty, differs in length, is NaN or infinite, or is a label
            outside 0..num_outputs-1.
    """
    if getattr(loaded, "train", None) is None:
        raise PipelineError(
            f"data: load() gave {type(loaded).__name__}, which has no 'train': return "
            f"pipeline.data.Samples, or an object whose train is a pair (inputs, targets)."
        )
    train = _checked("train", loaded.train)
    given_test = getattr(loaded, "test", None)
    test = None if given_test is None else _checked("test", given_test)
    if test is not None and _shapes(test) != _shapes(train):
        raise PipelineError(
            f"data: test samples have shapes {_shapes(test)}, training samples {_shapes(train)}: "
            f"give both the same."
        )
    input_shape = getattr(loaded, "input_shape", None)
    if input_shape is None:
        input_shape = pytree.tree_leaves(train.inputs)[0].shape[1:]
    num_outputs = getattr(loaded, "num_outputs", None)
    if num_outputs is None:
        num_outputs = count_outputs(*(part.targets for part in (train, test) if part is not None))
    check_count("data.num_outputs", num_outputs)
    for part in (train, test):
        if part is not None:
            _check_targets(part.targets, num_outputs)
    return Samples(train, test, tuple(input_shape), num_outputs)


def count_outputs(*targets: Any) -> int:
    """The outputs that a model for these targets needs: highest label + 1, or the numbers of one target."""
    if not all(isinstance(part, Tensor) for part in targets):
        raise PipelineError(
            "data: targets are not one tensor, so outputs cannot be counted: give data.num_outputs."
        )
    if targets[0].is_floating_point():
        return prod(targets[0].shape[1:])
    return 1 + max(int(part.max()) for part in targets)


def _checked(name: str, part: Any) -> Batch:
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise PipelineError(f"data: {name} is {type(part).__name__}: give a pair (inputs, targets).")
    batch = Batch(*part)
    leaves = [
        (f"{name} {field}", leaf)
        for field, value in batch._asdict().items()
        for leaf in pytree.tree_leaves(value)
    ]
    for where, leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            raise PipelineError(f"data: {where} hold {type(leaf).__name__}: give tensors, one row a sample.")
    lengths = {where: len(leaf) for where, leaf in leaves}
    if f"{name} inputs" not in lengths or f"{name} targets" not in lengths or 0 in lengths.values():
        raise PipelineError(f"data: {name} has no samples: give at least one.")
    if len({len(leaf) for _, leaf in leaves}) > 1:
        counts = ", ".join(f"{len(leaf)} {where}" for where, leaf in leaves)
        raise PipelineError(f"data: lengths differ ({counts}): give one target for each sample.")
    for where, leaf in leaves:
        check_finite(where, leaf, range(len(leaf)))
    return batch


def check_finite(where: str, values: Tensor, numbers: Sequence[int]) -> None:
    """Refuse samples with NaN or infinity. numbers: of the samples in the data that they come from.

    Raises:
        PipelineError: with the number of the first one.
    """
    bad = ~torch.isfinite(values).reshape(len(values), -1).all(1)
    if bad.any():
        first = min(int(numbers[int(each)]) for each in bad.nonzero())
        raise PipelineError(
            f"data: {where} are NaN or infinite in {int(bad.sum())} of {len(values)} samples, the first one "
            f"number {first}: remove these samples or fill them in."
        )


def _check_targets(targets: Any, num_outputs: int) -> None:
    """Labels lie in 0..num_outputs-1; what is not one tensor of labels is the criterion's to judge."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return
    highest = max(num_outputs, 2) - 1
    counted = targets[targets != IGNORED] if targets.ndim > 1 else targets
    if not counted.numel():
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high > highest:
        raise PipelineError(
            f"data: labels run from {low} to {high}, but data.num_outputs={num_outputs} allows 0 to "
            f"{highest}: number the classes from 0, or set data.num_outputs."
        )


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape[1:]) for leaf in pytree.tree_leaves(tuple(batch))]
