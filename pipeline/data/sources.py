"""Samples as PyTorch's users have them, read by number: arrays, columns of a table, datasets, loaders."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.data.columns import Columns
from pipeline.errors import PipelineError, first_line, must_reach_user
from pipeline.system import progress

Pair = tuple[Any, Any]
AT_ONCE = 256  # samples that a dataset is asked for
FEW = 8  # of these: no progress is shown


@dataclass(frozen=True)
class Source:
    """N samples that are read by their numbers.

    read: inputs and targets of the samples of these numbers: tensors (or, for labels, arrays of texts) in tuples and
        dicts, one row a sample.
    num_classes: as the data says of itself; None where it says nothing.
    """

    num_samples: int
    read: Callable[[Sequence[int]], Pair]
    num_classes: int | None = None

    @staticmethod
    def of_arrays(inputs: Any, targets: Any, name: str) -> Source:
        """Of arrays, tensors, or tuples and mappings of them.

        Raises:
            PipelineError: one holds no numbers, or lengths differ.
        """
        pair = (_values(inputs, f"{name}: inputs"), _values(targets, f"{name}: targets"))
        leaves = pytree.tree_leaves(pair)
        if any(leaf.ndim == 0 for leaf in leaves):
            raise PipelineError(f"data: {name} holds a single number: give arrays, one row a sample.")
        lengths = [len(leaf) for leaf in leaves]
        if len(set(lengths)) != 1:
            counts = f"{lengths[0] if lengths else 0} inputs, {lengths[-1] if lengths else 0} targets"
            raise PipelineError(f"data: lengths differ ({counts}): give one target for each sample.")
        labels = pair[1]
        counted = isinstance(labels, Tensor) and not labels.is_floating_point() and len(labels) > 0
        num_classes = 1 + int(labels.max()) if counted else None

        def read(numbers: Sequence[int]) -> Pair:
            return pytree.tree_map(lambda leaf: leaf[np.asarray(numbers, np.int64)], pair)  # type: ignore[no-any-return]

        return Source(lengths[0], read, num_classes)

    @staticmethod
    def of_dataset(dataset: Any, columns: Columns) -> Source:
        """Of what has a length and gives samples by number: a torch Dataset, or one of Hugging Face's library."""
        name = type(dataset).__name__
        if hasattr(dataset, "with_format") and getattr(dataset, "format", {"type": None})["type"] is None:
            dataset = dataset.with_format(
                "numpy"
            )  # Hugging Face's, without a transform: arrays in place of lists

        def read(numbers: Sequence[int]) -> Pair:
            items = []
            starts = range(0, len(numbers), AT_ONCE)
            for start in progress(starts, "reading samples") if len(starts) > FEW else starts:
                part = [int(number) for number in numbers[start : start + AT_ONCE]]
                items += [columns.pair(item, name) for item in _items(dataset, part, name)]
            return stacked(items, name, numbers)

        return Source(len(dataset), read, num_classes_of(dataset, columns))


def num_classes_of(dataset: Any, columns: Columns) -> int | None:
    """As torchvision's datasets say by `classes`, and Hugging Face's by the feature of the targets' column."""
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, list | tuple):
        return len(classes)
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        number = getattr(features.get(columns.targets_among(list(features))), "num_classes", None)
        return number if isinstance(number, int) else None
    return None


def _items(dataset: Any, numbers: list[int], name: str) -> Iterator[Any]:
    """Samples by number, several at once where the dataset can."""
    if hasattr(dataset, "__getitems__"):
        with errors_of(f"{name}, samples {numbers[0]} to {numbers[-1]}"):
            yield from dataset.__getitems__(numbers)
        return
    for number in numbers:
        with errors_of(f"{name}[{number}]"):
            item = dataset[number]
        yield item


@contextmanager
def errors_of(what: str) -> Iterator[None]:
    """Say of an error in a person's own code, in one line, where it was raised."""
    try:
        yield
    except Exception as error:
        if must_reach_user(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = first_line(error)
        raise PipelineError(
            f"data: {what} raises {type(error).__name__}: {line} ({frame.filename}, line {frame.lineno}): "
            "mend it there; HYDRA_FULL_ERROR=1 shows the traceback."
        ) from error


def joined(batches: Sequence[Pair], name: str) -> Pair:
    """Batches of a loader, one after the other.

    Raises:
        PipelineError: there are none, or they differ in shape.
    """
    return _together(batches, name, "batch", range(len(batches)), torch.cat)


def stacked(items: Sequence[Pair], name: str, numbers: Sequence[int]) -> Pair:
    """Samples as rows.

    Raises:
        PipelineError: they differ in shape or in what they hold.
    """
    return _together(items, name, "sample", numbers, torch.stack)


def _together(
    pairs: Sequence[Pair],
    name: str,
    kind: str,
    numbers: Sequence[int],
    join: Callable[[list[Tensor]], Tensor],
) -> Pair:
    if not pairs:
        raise PipelineError(f"data: {name} has no samples: give at least one.")
    columns: list[list[Any]] = []
    form = None
    for number, pair in zip(numbers, pairs, strict=True):
        values = tuple(
            _values(part, f"{name}, {kind} {number}: {side}")
            for part, side in zip(pair, ("inputs", "targets"), strict=True)
        )
        leaves, this = pytree.tree_flatten(values)
        if form is None:
            form, columns = this, [[] for _ in leaves]
        if this != form:
            raise PipelineError(
                f"data: {name}: {kind} {number} holds other things than {kind} {numbers[0]}: let all be alike."
            )
        for column, leaf in zip(columns, leaves, strict=True):
            _check_alike(column, leaf, f"{name}: {kind} {number}", f"{kind} {numbers[0]}", join is torch.cat)
            column.append(leaf)
    assert form is not None
    made = [
        join(column) if isinstance(column[0], Tensor) else np.concatenate(list(map(np.atleast_1d, column)))
        for column in columns
    ]
    return pytree.tree_unflatten(made, form)  # type: ignore[no-any-return]


def _check_alike(column: list[Any], leaf: Any, what: str, first: str, batched: bool) -> None:
    skipped = 1 if batched else 0
    if column and column[0].shape[skipped:] != leaf.shape[skipped:]:
        raise PipelineError(
            f"data: {what} has shape {tuple(leaf.shape)}, {first} has {tuple(column[0].shape)}: bring all to one "
            "shape, pad or resize them."
        )


def _values(value: Any, where: str) -> Any:
    """Arrays and numbers as tensors, in tuples and dicts; texts as an array."""
    if isinstance(value, Mapping):
        return {str(key): _values(part, f"{where} {key!r}") for key, part in value.items()}
    if isinstance(value, tuple) and not all(isinstance(part, int | float) for part in value):
        return tuple(_values(part, where) for part in value)
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        array = np.empty(0, object)
    if array.dtype.kind == "O" and array.size and all(isinstance(text, str) for text in array.flat):
        array = array.astype(str)
    if array.dtype.kind in "US":
        return array.astype(str)
    if array.dtype.kind not in "biuf":
        raise PipelineError(f"data: {where} hold {_held(value, array)}.")
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())


def _held(value: Any, array: Any) -> str:
    if array.dtype.kind == "O":
        first = array.flat[0] if array.size else value
        if isinstance(first, list | tuple | np.ndarray | Tensor) or not array.size:
            return "rows of different lengths: pad them to one"
        return f"{type(first).__name__}, no numbers: choose other columns, or give a transform that makes numbers"
    return f"{array.dtype}, no numbers: convert them first"
