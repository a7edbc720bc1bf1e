"""What a person's own samples become before a model sees them: images, labels, integers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.data.samples import Samples, as_samples, check_finite, count_outputs
from pipeline.data.sources import Source
from pipeline.data.split import SplitDataset
from pipeline.errors import PipelineError
from pipeline.objective import IGNORED, Batch, is_one_hot
from pipeline.validation import check_bool

log = logging.getLogger("pipeline")
WHITE = 255
NUM_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class ConvertedDataset(SplitDataset):
    """A person's own samples, split and brought into the form that models take.

    Integer inputs stay integers (int64), as ids of tokens must; booleans stay booleans. Targets: integers and booleans
    are labels, (N,), (N, 1) or (N, T); floats are values, (N,) or (N, k). (N,) inputs become (N, 1).

    channels_last: images come as (N, height, width, channels), and become (N, channels, height, width).
    scale: pixels come as 0..255, and become 0..1.
    as_float: integer inputs are values, and become float32.
    map_labels: targets are classes of any kind (1..C, texts, whole floats, one-hot rows), and become 0..C-1.
    """

    channels_last: bool = False
    scale: bool = False
    as_float: bool = False
    map_labels: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels_last", "scale", "as_float", "map_labels"):
            check_bool(f"data.{name}", getattr(self, name))

    def samples(self, train: Source, test: Source | None = None) -> Samples:
        """Read, convert and check the samples; without a source of test samples they are split.

        Raises:
            PipelineError: samples cannot be read, or an option does not fit them.
        """
        if test is None:
            test_numbers, train_numbers = self.order(train.num_samples)
            chosen = [(train, train_numbers), (train, test_numbers)]
        else:
            rest = self.order(train.num_samples, test_fraction=0)[1]
            chosen = [(train, rest), (test, np.arange(test.num_samples))]
        parts = [
            (source.read(numbers.tolist()), numbers.tolist()) for source, numbers in chosen if len(numbers)
        ]
        for ((inputs, targets), numbers), name in zip(parts, ("train", "test"), strict=False):
            for where, tree in (("inputs", inputs), ("targets", targets)):
                for leaf in pytree.tree_leaves(tree):
                    if isinstance(leaf, Tensor):
                        check_finite(f"{name} {where}", leaf, numbers)
        inputs = [self._inputs(pair[0]) for pair, _ in parts]
        targets = self._targets([pair[1] for pair, _ in parts])
        batches = [Batch(*pair) for pair in zip(inputs, targets, strict=True)]
        num_outputs = self._num_outputs(targets, train.num_classes)
        shape = tuple(pytree.tree_leaves(inputs[0])[0].shape[1:])
        held_out = batches[1] if len(batches) > 1 else None
        return as_samples(Samples(batches[0], held_out, shape, num_outputs))

    def _num_outputs(self, targets: Sequence[Any], num_classes: int | None) -> int:
        if self.num_outputs is not None:
            if isinstance(targets[0], Tensor):
                self.check_width(targets[0], self.num_outputs)
            return self.num_outputs
        number = count_outputs(*targets)
        labels = targets[0].ndim == 1 and not targets[0].is_floating_point() and not self.map_labels
        return max(number, num_classes or 0) if labels else number

    def _inputs(self, tree: Any) -> Any:
        leaves, form = pytree.tree_flatten(tree)
        if any(not isinstance(leaf, Tensor) for leaf in leaves):
            raise PipelineError("data: inputs hold texts: give numbers, such as ids of tokens.")
        if self.channels_last and all(leaf.ndim != 4 for leaf in leaves):
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
            raise PipelineError(
                f"data.channels_last=true: images (N, height, width, channels) are needed, inputs have shape {shapes}: "
                "leave it out."
            )
        made = [self._input(leaf, len(leaves) == 1) for leaf in leaves]
        return (
            self.reshaped(made[0]) if len(made) == 1 and form.is_leaf() else pytree.tree_unflatten(made, form)
        )

    def _input(self, values: Tensor, alone: bool) -> Tensor:
        if self.channels_last and values.ndim == 4:
            values = values.permute(0, 3, 1, 2).contiguous()
        if self.scale and (alone or values.ndim >= 3):
            values = _scaled(values)
        if not values.is_floating_point():
            whole = values if values.dtype == torch.bool else values.long()
            values = whole.float() if self.as_float else whole
        elif values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        return values[:, None] if values.ndim == 1 else values

    def _targets(self, trees: Sequence[Any]) -> list[Any]:
        if self.map_labels:
            return _as_labels(trees)
        return [pytree.tree_map(_target, tree) for tree in trees]


def _scaled(values: Tensor) -> Tensor:
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > WHITE or (values.is_floating_point() and high <= 1):
        raise PipelineError(
            f"data.scale=true takes pixels of 0..255, inputs run from {low:g} to {high:g}: leave it out."
        )
    scaled: Tensor = torch.true_divide(values, WHITE)
    return scaled


def _target(values: Any) -> Tensor:
    if not isinstance(values, Tensor):
        first = ", ".join(map(str, np.unique(values)[:3]))
        raise PipelineError(
            f"data: targets are texts ({first}, …): data.map_labels=true numbers the classes."
        )
    column = values.ndim == 2 and values.shape[1] == 1
    if values.is_floating_point():
        floats: Tensor = values.float() if values.itemsize < 4 else values
        return floats[:, None] if floats.ndim == 1 else floats
    labels: Tensor = (values[:, 0] if column else values).long()
    if labels.ndim == 1 and len(labels) and int(labels.min()) < 0:
        if set(labels[labels < 0].tolist()) == {IGNORED}:
            raise PipelineError(
                f"data: samples have the label {IGNORED}, which losses do not count: leave these samples out."
            )
        raise PipelineError(
            f"data: labels run from {int(labels.min())} to {int(labels.max())}: data.map_labels=true numbers the "
            "classes from 0."
        )
    return labels


def _as_labels(trees: Sequence[Any]) -> list[Any]:
    """Labels 0..C-1 of the classes that all parts together have, in their order; what became of them is logged."""
    if not all(isinstance(tree, Tensor | np.ndarray) for tree in trees):
        raise PipelineError(
            "data.map_labels=true takes one array of classes; targets are several: leave it out."
        )
    parts = [_classes(np.asarray(tree)) for tree in trees]
    known = np.unique(np.concatenate(parts))
    listed = ", ".join(map(str, known[:NUM_NAMED])) + (", …" if len(known) > NUM_NAMED else "")
    log.info("data.map_labels=true: the classes %s become 0 to %d.", listed, len(known) - 1)
    return [torch.from_numpy(np.searchsorted(known, part).astype(np.int64)) for part in parts]


def _classes(values: NDArray[Any]) -> NDArray[Any]:
    """One class a sample; of rows that are one-hot, the place of the one."""
    if values.dtype.kind in "biuf" and is_one_hot(torch.from_numpy(values)):
        return np.asarray(values.argmax(1))
    if prod(values.shape[1:]) != 1:
        raise PipelineError(
            f"data.map_labels=true takes one class a sample, targets have shape {values.shape}: leave it out."
        )
    values = values.reshape(-1)
    if values.dtype.kind == "f" and not (values == np.round(values)).all():
        odd = values[values != np.round(values)][0]
        raise PipelineError(
            f"data.map_labels=true takes classes, targets hold {odd:g}: leave it out for values."
        )
    return values.astype(np.int64) if values.dtype.kind in "bf" else values
