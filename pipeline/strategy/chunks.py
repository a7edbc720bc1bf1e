"""A batch as a weighted sum of smaller ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from pipeline.objective import Batch, Objective, Params, flatten


def weighted_chunks(
    objective: Objective, params: Params, batch: Batch, size: int
) -> list[tuple[float, Batch]]:
    """Chunks of the batch, and the weights with which their losses make up the batch's.

    They are read off gradients, and not at `params`, where a gradient of zero would let both candidates pass.
    """
    n = batch.num_samples
    chunks = [batch.chunk(start, min(start + size, n)) for start in range(0, n, size)]
    if len(chunks) == 1:
        return [(1.0, batch)]
    elsewhere = _moved(params)
    whole = _gradient(objective, elsewhere, batch)
    parts = [_gradient(objective, elsewhere, chunk) for chunk in chunks]
    tolerance = 100 * torch.finfo(whole.dtype).eps
    for weights in ([chunk.num_samples / n for chunk in chunks], [1.0] * len(chunks)):
        weighted = [weight * part for weight, part in zip(weights, parts, strict=True)]
        scale = torch.stack([part.norm() for part in weighted]).sum()
        if torch.stack(weighted).sum(0).sub(whole).norm() <= tolerance * scale:
            return list(zip(weights, chunks, strict=True))
    return [(1.0, batch)]


def _moved(params: Params) -> Params:
    """Weights a tenth of their size away, in a direction that is always the same."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + 0.1 * (1 + value.abs()) * torch.randn(value.shape, generator=generator).to(value)
        for name, value in params.items()
    }


def _gradient(objective: Objective, params: Params, batch: Batch) -> Tensor:
    return flatten(grad(lambda p: objective.loss(p, batch))(params))
