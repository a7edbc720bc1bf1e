"""The sums of a use with itself where no position is shared: Σ_n δ̇[u, n, k] ã[n, p] ã[n, q], symmetric in p and q."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STRIP = 16  # inputs; of the products of two strips only one is kept


@dataclass(frozen=True)
class Squares:
    """products: ã[n, p] ã[n, q], (N, Q), for every two strips of inputs once: Q is little over p²/2 for many inputs."""

    products: Tensor
    num_inputs: int

    @staticmethod
    def of(a: Tensor) -> Squares:
        """a: ã, (N, p)."""
        num_inputs = a.shape[1]
        parts = [(a[:, p, None] * a[:, None, q]).flatten(1) for p, q in _pairs(num_inputs)]
        return Squares(torch.cat(parts, 1), num_inputs)

    @staticmethod
    def num_products(num_inputs: int) -> int:
        """The number Q."""
        return sum((p.stop - p.start) * (q.stop - q.start) for p, q in _pairs(num_inputs))

    def rows(self, delta_dot: Tensor) -> Tensor:
        """delta_dot: (u, N, k). Gives (u·p, k·q), by one matrix product with both strips' halves copied from it."""
        u, N, k = delta_dot.shape
        sums = (delta_dot.transpose(1, 2).reshape(u * k, N) @ self.products).view(u, k, -1)
        values = sums.new_empty(u, self.num_inputs, k, self.num_inputs)
        start = 0
        for p, q in _pairs(self.num_inputs):
            sizes = (p.stop - p.start, q.stop - q.start)
            part = sums[..., start : start + sizes[0] * sizes[1]].unflatten(-1, sizes)  # (u, k, p, q)
            values[:, p, :, q] = part.transpose(1, 2)
            if p != q:
                values[:, q, :, p] = part.permute(0, 3, 1, 2)
            start += sizes[0] * sizes[1]
        return values.flatten(2).flatten(0, 1)


def _pairs(num_inputs: int) -> list[tuple[slice, slice]]:
    """The strips that inputs are cut into, in pairs; one strip where they are few."""
    size = STRIP if num_inputs >= 3 * STRIP else num_inputs
    strips = [slice(start, min(start + size, num_inputs)) for start in range(0, num_inputs, size)]
    return [(p, q) for i, p in enumerate(strips) for q in strips[: i + 1]]
