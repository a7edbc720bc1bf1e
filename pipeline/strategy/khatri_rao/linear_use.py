"""Where weights enter linearly: every z = W ã + b that a model computes, in order of execution.

A use is one call with a weight or bias that is to be differentiated by. With N samples, T positions that share the
weight (1 for a plain affine layer; pixels, tokens), G groups of d units with p inputs each: z is (N, T, G·d), ã is
(N, T, G·p), and unit i of group g is z = Σ_q W[g, i, q] ã[g, q] + b[g, i]. Norms and products are the diagonal case,
d = p = 1. The calls that are known stand in `linear_functions.py`; they are caught as functions, whichever module makes
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearUse:
    """One call. weight, bias: their names, or None where they are not differentiated by.

    shape: of z as the model has it. unit_dims: the dimensions of z that count units, groups first; the others count
    samples and positions. see: the input of the call, (c, *its shape), as (c, *the other dimensions of z, G·p). order:
    where entry (g, i, q) of the weight is stored in the flat parameter; None where it is stored in that order.
    samples: the dimension of z that counts samples, once it is known. It may hold several positions of each: all those
    of the first sample first, or, if samples_vary_fastest, all samples at the first position first.
    """

    weight: str | None
    bias: str | None
    shape: tuple[int, ...]
    unit_dims: tuple[int, ...]
    num_groups: int
    num_inputs: int
    see: Callable[[Tensor], Tensor]
    order: Tensor | None = None
    samples: int = 0
    num_samples: int = 0
    samples_vary_fastest: bool = False

    @property
    def num_units(self) -> int:
        """The number G·d."""
        return prod(self.shape[dim] for dim in self.unit_dims)

    @property
    def num_positions(self) -> int:
        """The number T."""
        return prod(self.shape) // (self.num_units * self.num_samples)

    @property
    def num_weights(self) -> int:
        """Entries of the weight: G·d·p, or 0 where it is not differentiated by."""
        return self.num_units * self.num_inputs if self.weight else 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def units(self, values: Tensor) -> Tensor:
        """Values shaped (c, *shape) as (c, N, T, G·d)."""
        last = values.movedim([1 + dim for dim in self.unit_dims], list(range(-len(self.unit_dims), 0)))
        return self._samples_first(last.flatten(-len(self.unit_dims)))

    def shaped(self, values: Tensor) -> Tensor:
        """The inverse of `units`: (c, N, T, G·d) as (c, *shape)."""
        rest = [self.shape[dim] for dim in self._other_dims]
        first = rest.pop(self._other_dims.index(self.samples))
        if self.samples_vary_fastest:
            values = values.unflatten(2, (first // self.num_samples, -1)).transpose(1, 2)
        values = values.reshape(len(values), first, *rest, *(self.shape[dim] for dim in self.unit_dims))
        values = values.movedim(1, 1 + self._other_dims.index(self.samples))
        return values.movedim(list(range(-len(self.unit_dims), 0)), [1 + dim for dim in self.unit_dims])

    def inputs(self, values: Tensor) -> Tensor:
        """Inputs of the call, (c, *its shape), as ã: (c, N, T, G·p)."""
        return self._samples_first(self.see(values))

    def with_samples(self, z: Tensor, num_samples: int, other: Tensor, num_others: int) -> LinearUse | None:
        """The use, once its z is known for another number of the same samples; None if no dimension counts them."""
        if other.ndim != z.ndim:
            return None
        for dim in self._other_dims:
            if (
                z.shape[dim] * num_others == other.shape[dim] * num_samples
                and z.shape[dim] != other.shape[dim]
            ):
                use = replace(self, samples=dim, num_samples=num_samples)
                if z.shape[dim] == num_samples:
                    return use
                few = min(num_samples, num_others)
                for order in ((num_samples, -1), (-1, num_samples)):
                    last = order[0] == -1
                    mine = z.unflatten(dim, order).narrow(dim + last, 0, few)
                    theirs = other.unflatten(dim, (-1, num_others) if last else (num_others, -1))
                    if torch.allclose(mine, theirs.narrow(dim + last, 0, few), rtol=1e-3, atol=1e-5):
                        return replace(use, samples_vary_fastest=last)
        return None

    @property
    def _other_dims(self) -> list[int]:
        return [dim for dim in range(len(self.shape)) if dim not in self.unit_dims]

    def _samples_first(self, values: Tensor) -> Tensor:
        """(c, *other dimensions of z, n) as (c, N, T, n)."""
        values = values.movedim(1 + self._other_dims.index(self.samples), 1)
        if self.samples_vary_fastest:
            values = values.unflatten(1, (-1, self.num_samples)).transpose(1, 2)
        return values.reshape(len(values), self.num_samples, -1, values.shape[-1])


@dataclass(frozen=True)
class Call:
    """What one run of the model shows of a use: the input as the call had it, and z."""

    use: LinearUse
    inputs: Tensor
    z: Tensor
