"""The sums of a use with itself where no position is shared: Σ_n δ̇[u, n, k] ã[n, p] ã[n, q]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Squares:
    """products: ã[n, p] ã[n, q], (p, N, q). They serve all units, and the rows come out where they belong."""

    products: Tensor

    @staticmethod
    def of(a: Tensor) -> Squares:
        """a: ã, (N, p)."""
        return Squares(a.T[:, :, None] * a)

    def rows(self, delta_dot: Tensor) -> Tensor:
        """delta_dot: (u, N, k). Gives (u·p, k·q): for each unit and input p one matrix product, (k, N) by (N, q)."""
        u, _, k = delta_dot.shape
        p, _, q = self.products.shape
        values = delta_dot.new_empty(u, p, k, q)
        for unit, moved in enumerate(delta_dot.transpose(1, 2).contiguous()):
            torch.bmm(moved.expand(p, -1, -1), self.products, out=values[unit])
        return values.view(u * p, k * q)
