"""Sums over samples of one number and two inputs, where no position is shared: Σ_n w[r, n, c] ã[n, p] ã'[n, q]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Products:
    """values: ã[n, p] ã'[n, q], (p, N, q). They serve all units, and the rows come out where they belong."""

    values: Tensor

    @staticmethod
    def of(a: Tensor, other: Tensor) -> Products:
        """a: ã, (N, p); other: ã', (N, q)."""
        return Products(a.T[:, :, None] * other)

    @staticmethod
    def num_bytes(num_samples: int, num_inputs: int, num_others: int, itemsize: int) -> int:
        """What the values take."""
        return num_samples * num_inputs * num_others * itemsize

    def rows(self, weights: Tensor) -> Tensor:
        """weights: w, (r, N, c). Gives (r·p, c·q): for each r and p one matrix product, (c, N) by (N, q)."""
        r, _, c = weights.shape
        p, _, q = self.values.shape
        rows = weights.new_empty(r, p, c, q)
        for place, weight in zip(rows, weights.transpose(1, 2).contiguous(), strict=True):
            torch.bmm(weight.expand(p, -1, -1), self.values, out=place)
        return rows.view(r * p, c * q)
