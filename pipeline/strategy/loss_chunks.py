"""A batch as a weighted sum of smaller ones."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import must_reach_user
from pipeline.objective import Batch, Objective, Params


def weighted_chunks(
    objective: Objective, params: Params, batch: Batch, size: int
) -> list[tuple[float, Batch]]:
    """Chunks of the batch, and the weights with which their losses make up the batch's; all of it, where none do.

    They are read off gradients, and not at `params`, where a gradient of zero would let both candidates pass. So what
    is cut wrongly (a mask that is as long as there are samples) is seen.
    """
    n = batch.num_samples
    if size >= n:
        return [(1.0, batch)]
    elsewhere = moved(params)
    whole = objective.gradient(elsewhere, batch)
    for squares in (True, False):
        chunks = [batch.chunk(start, min(start + size, n), squares) for start in range(0, n, size)]
        try:
            parts = [objective.gradient(elsewhere, chunk) for chunk in chunks]
        except Exception as error:  # a model may raise anything where its inputs do not fit together
            if must_reach_user(error):
                raise
            continue
        shares = [min(size, n - start) / n for start in range(0, n, size)]
        for weights in (shares, [1.0] * len(chunks)):
            if _make_up(whole, weights, parts):
                return list(zip(weights, chunks, strict=True))
    return [(1.0, batch)]


def _make_up(whole: Tensor, weights: list[float], parts: list[Tensor]) -> bool:
    weighted = [weight * part for weight, part in zip(weights, parts, strict=True)]
    scale = torch.stack([part.norm() for part in weighted]).sum()
    tolerance = 100 * torch.finfo(whole.dtype).eps
    return bool(torch.stack(weighted).sum(0).sub(whole).norm() <= tolerance * scale)


def moved(params: Params) -> Params:
    """Weights a tenth of their size away, in a direction that is always the same."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + 0.1 * (1 + value.abs()) * torch.randn(value.shape, generator=generator).to(value)
        for name, value in params.items()
    }
