"""Where weights enter linearly: every z = W ã + b that a model computes, and a zero to add to z.

A use is one call of `linear` or of a convolution with a weight (or bias) that is to be differentiated by. With N
samples, T positions that share the weight (1 for a plain affine layer; pixels, tokens), d units and p inputs a unit:
z is (N, T, d), ã is (N, T, p), W is (d, p). Calls are caught as functions, whichever module makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.objective import Batch, Objective, Params

CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
COMPOSITE = (
    F.multi_head_attention_forward,
)  # they call `linear` inside, out of sight unless the mode is re-entered


@dataclass(frozen=True)
class Use:
    """One call, in order of execution. weight, bias: their names, or None where they are not differentiated by."""

    weight: str | None
    bias: str | None
    shape: tuple[int, ...]  # of z as the model has it: (N, ..., d), or (N, d, ...) for a convolution
    num_inputs: int  # p
    convolution: dict[str, tuple[int, ...]] | None  # kernel, stride, padding, dilation

    @property
    def num_units(self) -> int:
        """The number d."""
        return self.shape[-1] if self.convolution is None else self.shape[1]

    @property
    def num_positions(self) -> int:
        """The number T."""
        return prod(self.shape[1:]) // self.num_units

    def units(self, values: Tensor) -> Tensor:
        """Values shaped (c, *shape) as (c, N, T, d)."""
        if self.convolution is None:
            return values.reshape(values.shape[0], self.shape[0], -1, self.num_units)
        return values.flatten(3).transpose(2, 3)

    def shaped(self, values: Tensor) -> Tensor:
        """The inverse of `units`: (c, N, T, d) as (c, *shape)."""
        if self.convolution is not None:
            values = values.transpose(2, 3)
        return values.reshape(values.shape[0], *self.shape)

    def inputs(self, values: Tensor) -> Tensor:
        """Inputs of the call, (c, N, ...), as (c, N, T, p): for a convolution, the patch that each position sees."""
        if self.convolution is None:
            return values.reshape(*values.shape[:2], -1, self.num_inputs)
        patches = _patches(values.flatten(0, 1), **self.convolution)
        return patches.reshape(*values.shape[:2], *patches.shape[1:])


@dataclass(frozen=True)
class Call:
    """What one run of the model shows of a use: its input as the call had it."""

    use: Use
    inputs: Tensor


class Capture(TorchFunctionMode):
    """Records every use and adds `shift(index, z)` to its output; `index` counts the uses in order of execution."""

    def __init__(self, params: Params, names: Sequence[str], shift: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.names = {id(params[name]): name for name in names}
        self.shift = shift
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in COMPOSITE:
            with self:
                return func(*args, **kwargs)
        z = func(*args, **kwargs)
        call = None
        if func is F.linear:
            call = self._linear(z, *args, **kwargs)
        elif func in CONVOLUTIONS:
            call = self._convolution(z, CONVOLUTIONS[func], *args, **kwargs)
        if call is None:
            return z
        self.calls.append(call)
        return self.shift(len(self.calls) - 1, z)

    def _name(self, tensor: Tensor | None) -> str | None:
        return None if tensor is None else self.names.get(id(tensor))

    def _linear(self, z: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
        names = self._name(weight), self._name(bias)
        if names == (None, None) or z.ndim < 2 or weight.ndim != 2:
            return None
        return Call(Use(*names, tuple(z.shape), weight.shape[1], None), input)

    def _convolution(
        self,
        z: Tensor,
        num_dims: int,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Call | None:
        names = self._name(weight), self._name(bias)
        if names == (None, None) or groups != 1 or z.ndim != num_dims + 2 or isinstance(padding, str):
            return None
        spread = {"stride": stride, "padding": padding, "dilation": dilation}
        geometry = {key: _tuple(value, num_dims) for key, value in spread.items()}
        kernel = tuple(weight.shape[2:])
        use = Use(*names, tuple(z.shape), weight[0].numel(), {"kernel": kernel, **geometry})
        return Call(use, input)


def run_captured(
    objective: Objective,
    params: Params,
    names: Sequence[str],
    batch: Batch,
    shift: Callable[[int, Tensor], Tensor],
) -> tuple[Tensor, list[Call]]:
    """The loss, and the uses of the named parameters in order of execution."""
    with Capture(params, names, shift) as capture:
        loss = objective.loss(params, batch)
    return loss, capture.calls


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values if len(values) == length else values * length


def _patches(
    images: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """(M, C, *sizes) as (M, T, C·K): for each output position the inputs it sees, channel by channel."""
    padded = F.pad(images, [side for width in reversed(padding) for side in (width, width)])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    lengths = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, stride, strict=True)]

    def seen(offset: Sequence[int]) -> Iterator[slice]:
        for o, d, s, n in zip(offset, dilation, stride, lengths, strict=True):
            yield slice(o * d, o * d + (n - 1) * s + 1, s)

    everything = (slice(None), slice(None))
    shifted = [padded[(*everything, *seen(offset))] for offset in product(*map(range, kernel))]
    stacked = torch.stack(shifted, dim=-1).flatten(2, -2)  # (M, C, T, K)
    return stacked.transpose(1, 2).flatten(2)
