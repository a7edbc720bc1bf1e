"""What samples are, in a line: shapes, dtypes, ranges, classes and their counts; and what looks like a mistake."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.objective.batch import Batch

NUM_LISTED = 12  # classes whose counts are listed one by one
CHANNELS = (1, 3, 4)


def describe(train: Batch, test: Batch | None) -> str:
    """The samples in one line.

    >>> describe(Batch(torch.zeros(6, 2), torch.tensor([0, 1, 1, 1, 0, 1])), None)
    'data: 6 training samples; inputs float32 (2,), 0 to 0; 2 classes, samples of each: 2, 4.'
    """
    held_out = f" and {test.num_samples:,} test samples" if test is not None else ""
    targets = train.targets
    judged = f"{_classes(targets)}." if _are_labels(targets) else f"targets {_parts(targets)}."
    return f"data: {train.num_samples:,} training{held_out or ' samples'}; inputs {_parts(train.inputs)}; {judged}"


def suspicions(train: Batch) -> list[str]:
    """What looks like a mistake, each with the option that mends it."""
    found = []
    for leaf in pytree.tree_leaves(train.inputs):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.ndim == 4 and leaf.shape[3] in CHANNELS and leaf.shape[1] not in CHANNELS:
            found.append(
                f"inputs of shape {tuple(leaf.shape[1:])} look like images whose channels come last: "
                "data.channels_last=true moves them."
            )
        if leaf.ndim >= 3 and leaf.is_floating_point() and leaf.max() == 255 and leaf.min() >= 0:
            found.append("inputs run from 0 to 255: data.scale=true brings them to 0..1.")
    targets = train.targets
    if _are_labels(targets):
        counts = torch.bincount(targets)
        if len(counts) > 1 and counts[0] == 0:
            found.append(
                f"no sample has label 0, the lowest is {int(targets.min())}: data.map_labels=true numbers the classes "
                "from 0."
            )
    elif (
        isinstance(targets, Tensor)
        and targets.ndim == 2
        and not targets.is_floating_point()
        and is_one_hot(targets)
    ):
        found.append("targets look one-hot: data.map_labels=true makes one label of each row.")
    elif _are_whole_floats(targets):
        found.append("targets are floats, though all whole: data.map_labels=true makes labels of classes.")
    return found


def _are_whole_floats(targets: Any) -> bool:
    """Whether values (N, 1) are few whole numbers, as of classes."""
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or targets.numel() != len(targets):
        return False
    kinds = targets.unique()
    return bool((kinds == kinds.round()).all()) and 1 < len(kinds) <= min(NUM_LISTED, len(targets) // 2)


def is_one_hot(values: Tensor) -> bool:
    """Whether each row (N, C), C > 1, is zero but for a single one."""
    if values.ndim != 2 or values.shape[1] < 2:
        return False
    return bool(((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all())


def _are_labels(targets: Any) -> bool:
    return (
        isinstance(targets, Tensor)
        and targets.ndim == 1
        and not targets.is_floating_point()
        and not targets.is_complex()
        and len(targets) > 0
        and int(targets.min()) >= 0
    )


def _classes(labels: Tensor) -> str:
    counts = torch.bincount(labels.long())
    number = int((counts > 0).sum())
    kinds = f"{number:,} class{'es' if number != 1 else ''}"
    if len(counts) <= NUM_LISTED:
        return f"{kinds}, samples of each: {', '.join(f'{int(count):,}' for count in counts)}"
    there = counts[counts > 0]
    samples = f"{int(there.min()):,} to {int(there.max()):,} samples each"
    return f"{kinds} among labels 0 to {len(counts) - 1:,}, of {samples}"


def _parts(tree: Any) -> str:
    named = [
        (pytree.keystr(path).strip("[]'\""), leaf) for path, leaf in pytree.tree_flatten_with_path(tree)[0]
    ]
    texts = [f"{f'{name} ' if name else ''}{_one(leaf)}" for name, leaf in named if isinstance(leaf, Tensor)]
    return ", ".join(texts)


def _one(values: Tensor) -> str:
    kind = str(values.dtype).removeprefix("torch.")
    shape = tuple(values.shape[1:])
    if values.dtype == torch.bool or values.is_complex() or not values.numel():
        return f"{kind} {shape}"
    return f"{kind} {shape}, {_number(values.min())} to {_number(values.max())}"


def _number(value: Tensor) -> str:
    return f"{value.item():.4g}" if value.is_floating_point() else f"{value.item():,}"
