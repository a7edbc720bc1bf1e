"""The functions in which a weight enters linearly, each read as a use; `linear_use.py` has the symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.strategy.khatri_rao.linear_use import Call, LinearUse

NameOf = Callable[[Any], str | None]
Reader = Callable[..., Call | None]


def _linear(name_of: NameOf, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
    names = name_of(weight), name_of(bias)
    if names == (None, None) or input.ndim < 2 or weight.ndim != 2:
        return None
    z = F.linear(input, weight, bias)
    return Call(LinearUse(*names, tuple(z.shape), (z.ndim - 1,), 1, weight.shape[1], _as_it_is), input, z)


def _matmul(function: Callable[..., Tensor], name_of: NameOf, input: Tensor, other: Tensor) -> Call | None:
    name = name_of(other)
    if name is None or input.ndim < 2 or other.ndim != 2:
        return None
    z, (p, d) = function(input, other), other.shape
    order = torch.arange(p * d, device=z.device).reshape(p, d).T.flatten()
    return Call(LinearUse(name, None, tuple(z.shape), (z.ndim - 1,), 1, p, _as_it_is, order), input, z)


def _addmm(
    name_of: NameOf, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Call | None:
    """A bias and a product, as layers write it that store the transposed weight."""
    names = name_of(mat2), name_of(input)
    if names == (None, None) or beta != 1 or alpha != 1 or input.shape != mat2.shape[1:]:
        return None
    z, (p, d) = torch.addmm(input, mat1, mat2), mat2.shape
    order = torch.arange(p * d, device=z.device).reshape(p, d).T.flatten()
    return Call(LinearUse(*names, tuple(z.shape), (1,), 1, p, _as_it_is, order), mat1, z)


def _embedding(name_of: NameOf, input: Tensor, weight: Tensor, **kwargs: Any) -> Call | None:
    name = name_of(weight)
    if name is None or any(kwargs.get(option) is not None for option in ("padding_idx", "max_norm")):
        return None
    z, (p, d) = F.embedding(input, weight), weight.shape

    def see(tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, p).to(weight.dtype)

    order = torch.arange(p * d, device=z.device).reshape(p, d).T.flatten()
    return Call(LinearUse(name, None, tuple(z.shape), (z.ndim - 1,), 1, p, see, order), input, z)


def _convolution(
    function: Callable[..., Tensor],
    num_dims: int,
    name_of: NameOf,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Call | None:
    names = name_of(weight), name_of(bias)
    if names == (None, None) or input.ndim != num_dims + 2:
        return None
    z = function(input, weight, bias, stride, padding, dilation, groups)
    kernel, dilations = tuple(weight.shape[2:]), _tuple(dilation, num_dims)
    widths = _widths(padding, kernel, dilations)
    see = partial(
        _patches,
        kernel,
        _tuple(stride, num_dims),
        widths,
        dilations,
        tuple(z.shape[2:]),
        (1,) * num_dims,
        groups,
    )
    return Call(LinearUse(*names, tuple(z.shape), (1,), groups, weight[0].numel(), see), input, z)


def _transposed_convolution(
    function: Callable[..., Tensor],
    num_dims: int,
    name_of: NameOf,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Call | None:
    """Output t takes input (t + padding - k·dilation) / stride at offset k of the kernel, where that is whole.

    It is the convolution of the stretched input, zeros between its entries, with the mirrored kernel.
    """
    names = name_of(weight), name_of(bias)
    if names == (None, None) or input.ndim != num_dims + 2:
        return None
    z = function(input, weight, bias, stride, padding, output_padding, groups, dilation)
    kernel, dilations = tuple(weight.shape[2:]), _tuple(dilation, num_dims)
    strides, paddings = _tuple(stride, num_dims), _tuple(padding, num_dims)
    first = [(k - 1) * d - p for k, d, p in zip(kernel, dilations, paddings, strict=True)]
    last = [
        n + (k - 1) * d - (s * (m - 1) + 1) - f
        for n, k, d, s, m, f in zip(
            z.shape[2:], kernel, dilations, strides, input.shape[2:], first, strict=True
        )
    ]
    widths = tuple(zip(first, last, strict=True))
    see = partial(
        _patches,
        kernel,
        (1,) * num_dims,
        widths,
        dilations,
        tuple(z.shape[2:]),
        strides,
        groups,
        mirrored=True,
    )
    size = weight.shape[0] // groups, weight.shape[1], prod(kernel)  # inputs and units of a group, offsets
    order = torch.arange(weight.numel(), device=z.device).reshape(groups, *size).transpose(1, 2).flatten()
    return Call(LinearUse(*names, tuple(z.shape), (1,), groups, size[0] * size[2], see, order), input, z)


def _widths(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Zeros before and after, in each dimension."""
    if padding == "same":
        totals = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    sides = _tuple(0 if padding == "valid" else padding, len(kernel))
    return tuple((side, side) for side in sides)


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values if len(values) == length else values * length


def _patches(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    widths: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    sizes: tuple[int, ...],
    stretch: tuple[int, ...],
    groups: int,
    images: Tensor,
    mirrored: bool = False,
) -> Tensor:
    """(c, B, C, *) as (c, B, *sizes, C·K): for each output position the inputs that it sees, channel by channel.

    stretch: the distance at which the inputs lie, with zeros between them; widths may be negative, which cuts.
    """
    if any(step > 1 for step in stretch):
        images = _stretched(images, stretch)
    padded = F.pad(images, [width for pair in reversed(widths) for width in pair])

    def seen(offset: tuple[int, ...]) -> Iterator[slice]:
        for o, k, d, s, n in zip(offset, kernel, dilation, stride, sizes, strict=True):
            start = ((k - 1 - o) if mirrored else o) * d
            yield slice(start, start + (n - 1) * s + 1, s)

    everything = (slice(None),) * 3
    shifted = [padded[(*everything, *seen(offset))] for offset in product(*map(range, kernel))]
    stacked = torch.stack(shifted, dim=-1)  # (c, B, C, *sizes, K)
    return stacked.movedim(2, -2).flatten(-2)


def _stretched(images: Tensor, stretch: tuple[int, ...]) -> Tensor:
    sizes = [step * (n - 1) + 1 for step, n in zip(stretch, images.shape[3:], strict=True)]
    result = images.new_zeros(*images.shape[:3], *sizes)
    result[(slice(None),) * 3 + tuple(slice(None, None, step) for step in stretch)] = images
    return result


def _norm(
    function: Any,
    parameters: tuple[str, ...],
    name_of: NameOf,
    *args: Any,
    **kwargs: Any,
) -> Call | None:
    """Normalisation without scale and shift, then both: the diagonal case."""
    options = dict(zip(parameters, args, strict=False)) | kwargs
    weight, bias = options.pop("weight", None), options.pop("bias", None)
    names = name_of(weight), name_of(bias)
    if names == (None, None):
        return None
    input, affine = options["input"], weight if weight is not None else bias
    over_last = function is F.rms_norm
    unit_dims = tuple(range(input.ndim - affine.ndim, input.ndim)) if over_last else (1,)
    shape = [n if dim in unit_dims else 1 for dim, n in enumerate(input.shape)]
    normalized = function(**options)
    z = normalized if weight is None else normalized * weight.reshape(shape)
    z = z if bias is None else z + bias.reshape(shape)
    use = LinearUse(*names, tuple(z.shape), unit_dims, affine.numel(), 1, partial(_units_last, unit_dims))
    return Call(use, normalized, z)


def _units_last(unit_dims: tuple[int, ...], values: Tensor) -> Tensor:
    """Values as z is shaped, (c, *shape), as (c, *other dimensions, G)."""
    last = list(range(-len(unit_dims), 0))
    return values.movedim([1 + dim for dim in unit_dims], last).flatten(-len(unit_dims))


def _sum(function: Callable[..., Tensor], name_of: NameOf, *args: Any, **kwargs: Any) -> Call | None:
    """A sum, x + b or b + x, with b broadcast over the samples: learned positions, say."""
    if len(args) != 2 or kwargs or not all(isinstance(arg, Tensor) for arg in args):
        return None
    name, input, term = _operands(name_of, *args)
    unit_dims = None if name is None else _spread(input, term)
    if unit_dims is None:
        return None
    z = function(*args)
    return Call(LinearUse(None, name, tuple(z.shape), unit_dims, term.numel(), 1, _as_it_is), input, z)


def _scaled(function: Callable[..., Tensor], name_of: NameOf, *args: Any) -> Call | None:
    """A product, x * w or w * x, with w broadcast over the samples."""
    if len(args) != 2 or not all(isinstance(arg, Tensor) for arg in args):
        return None
    name, input, factor = _operands(name_of, *args)
    unit_dims = None if name is None else _spread(input, factor)
    if unit_dims is None:
        return None
    z = function(*args)
    see = partial(_units_last, unit_dims)
    return Call(LinearUse(name, None, tuple(z.shape), unit_dims, factor.numel(), 1, see), input, z)


def _scaled_and_shifted(name_of: NameOf, input: Tensor, tensor1: Tensor, tensor2: Tensor) -> Call | None:
    """The last operation of a norm over the last dimensions, b + x * w."""
    names = name_of(tensor2), name_of(input)
    unit_dims = _spread(tensor1, tensor2)
    if names == (None, None) or unit_dims is None or input.shape != tensor2.shape:
        return None
    z = torch.addcmul(input, tensor1, tensor2)
    see = partial(_units_last, unit_dims)
    return Call(LinearUse(*names, tuple(z.shape), unit_dims, tensor2.numel(), 1, see), tensor1, z)


def _operands(name_of: NameOf, one: Tensor, other: Tensor) -> tuple[str | None, Tensor, Tensor]:
    """Which of two operands is a parameter: its name, the other operand, and itself."""
    if name_of(one) is not None and name_of(other) is not None:
        return None, one, other
    return (name_of(one), other, one) if name_of(one) is not None else (name_of(other), one, other)


def _spread(input: Tensor, parameter: Tensor) -> tuple[int, ...] | None:
    """The dimensions of the input that the parameter has too; None if the result would not be shaped as the input."""
    missing = input.ndim - parameter.ndim
    if missing < 0 or parameter.numel() == 1:
        return None
    dims = tuple(missing + dim for dim, n in enumerate(parameter.shape) if n > 1)
    fits = all(input.shape[dim] == parameter.shape[dim - missing] for dim in dims)
    return dims if fits and len(dims) < input.ndim else None


def _as_it_is(values: Tensor) -> Tensor:
    return values


NORMS = {
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.instance_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("use_input_stats", "momentum", "eps"),
    ),
}
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED_CONVOLUTIONS = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
LINEAR_CALLS: dict[Any, Reader] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.addmm: _addmm,
    torch.addcmul: _scaled_and_shifted,
    **{function: partial(_norm, function, names) for function, names in NORMS.items()},
    **{function: partial(_convolution, function, n) for n, function in enumerate(CONVOLUTIONS, start=1)},
    **{
        function: partial(_transposed_convolution, function, n)
        for n, function in enumerate(TRANSPOSED_CONVOLUTIONS, start=1)
    },
    **{function: partial(_matmul, function) for function in (torch.matmul, torch.Tensor.matmul, torch.mm)},
    **{function: partial(_sum, function) for function in (torch.add, torch.Tensor.add)},
    **{function: partial(_scaled, function) for function in (torch.mul, torch.Tensor.mul)},
}
