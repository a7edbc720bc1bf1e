"""A batch: inputs and targets of some samples, as the model and the criterion take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.objective.trees import Tree

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


class Batch(NamedTuple):
    """N samples: inputs and targets as the model and the criterion take them.

    Most tensors count samples in their first dimension; masks, edges of a graph, flags and the like do not. Which of
    them do is a guess by shapes (`counted`), so nothing is cut by it before a trial has shown that it may be, see
    `strategy/loss_chunks.py`.
    """

    inputs: Inputs
    targets: Any

    @property
    def num_samples(self) -> int:
        """N, the length that most inputs share; of two as frequent, the one that divides the targets' length."""
        lengths = [len(value) for value in _tensors(self.inputs) if value.ndim > 0]
        others = [len(value) for value in _tensors(self.targets) if value.ndim > 0]

        def rank(length: int) -> tuple[int, bool]:
            return lengths.count(length), any(n % length == 0 for n in others if length)

        return max(lengths, key=rank) if lengths else 1

    def counted(self, squares: bool = True) -> list[int]:
        """How many entries of its first dimension a sample takes, for each tensor of inputs and targets; 0: none.

        squares: whether a tensor (N, N) counts samples, which may as well be a mask.
        """
        n = self.num_samples

        def entries(value: Tensor, several: bool) -> int:
            if value.ndim == 0 or n == 0 or (not squares and value.shape[:2] == (n, n)):
                return 0
            return len(value) // n if len(value) == n or (several and len(value) % n == 0) else 0

        inputs = [entries(value, False) for value in _tensors(self.inputs)]
        return inputs + [entries(value, True) for value in _tensors(self.targets)]

    @staticmethod
    def of(inputs: Any, targets: Any, dtype: torch.dtype | None = None) -> Batch:
        """Inputs and targets as a user has them: mappings become dictionaries, and NumPy arrays tensors.

        dtype: of the floating-point arrays; None leaves them theirs. Arrays of whole numbers become int64.

        Raises:
            PipelineError: an array holds no numbers.
        """
        return Batch(_plain_values(inputs, dtype), _plain_values(targets, dtype))

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same samples elsewhere; only floating-point tensors take the dtype."""
        return self._like([cast(value, device, dtype) for value in _tensors(tuple(self))])

    def chunk(self, start: int, stop: int, squares: bool = True) -> Batch:
        """Samples start..stop-1, as far as shapes tell; what does not count samples stays whole."""
        pairs = zip(_tensors(tuple(self)), self.counted(squares), strict=True)
        return self._like([value[start * each : stop * each] if each else value for value, each in pairs])

    def doubled(self, squares: bool = True) -> Batch:
        """Every sample twice."""
        pairs = zip(_tensors(tuple(self)), self.counted(squares), strict=True)
        return self._like([torch.cat([value, value]) if each else value for value, each in pairs])

    def _like(self, tensors: Sequence[Tensor]) -> Batch:
        return Batch(*Tree.of(tuple(self), every=True).like(tensors))


def _tensors(value: Any) -> tuple[Tensor, ...]:
    return Tree.of(value, every=True).tensors


def _plain_values(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_values(part, dtype) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_plain_values(part, dtype) for part in value)
    return _tensor_of(value, dtype) if isinstance(value, np.ndarray) else value


def _tensor_of(array: np.ndarray[Any, Any], dtype: torch.dtype | None) -> Tensor:
    if array.dtype.kind not in "fiubc":
        raise PipelineError(f"an array of inputs or targets has dtype {array.dtype}: give numbers.")
    if array.dtype.kind in "iu":
        array = array.astype(np.int64)
    tensor = torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))  # a copy of its own
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def cast(value: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """The tensor elsewhere; only a floating-point one takes the dtype."""
    if value.is_inference():  # made under torch.inference_mode(): autograd keeps no such tensor
        value = value.clone()
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
