"""Two backward passes: the derivative of the gradient's component along a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.objective import Batch, Objective, Params, leaves_of
from pipeline.operator.protocol import Product


@dataclass(frozen=True)
class ReverseOverReverse:
    """H v = ∇ (∇L · v): a backward pass through the graph of the gradient, one for each vector.

    The graph is built once for a product. Where the operator keeps that, a further vector costs one pass through the
    graph, which is one to two gradients; else it is built for each call again, and shared by the vectors of the call.
    Memory: the activations of the batch about four times, and the gradient.
    """

    is_kept: bool = True

    @property
    def name(self) -> str:
        return "reverse over reverse" + (", graph kept" if self.is_kept else "")

    def product(self, objective: Objective, params: Params, batch: Batch) -> Product:
        leaves = leaves_of(params)
        weights = tuple(leaves.values())
        loss = objective.loss(leaves, batch)
        if not loss.requires_grad:
            return torch.zeros_like
        gradient = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        return _GradientGraph(weights, gradient)


@dataclass(frozen=True)
class _GradientGraph:
    """A gradient with its graph, and the weights that it is a function of."""

    weights: Sequence[Tensor]
    gradient: Sequence[Tensor]

    def __call__(self, vectors: Tensor) -> Tensor:
        rows = vectors.T.contiguous()
        results = torch.empty_like(rows)
        for vector, result in zip(rows, results, strict=True):
            self._multiply(vector, result)
        return results.T

    def _multiply(self, vector: Tensor, result: Tensor) -> None:
        """Write H v into `result`."""
        parts = vector.split([value.numel() for value in self.weights])
        pairs = [
            (g, part.reshape(g.shape))
            for g, part in zip(self.gradient, parts, strict=True)
            if g.requires_grad
        ]
        if not pairs:
            result.zero_()
            return
        values, along = zip(*pairs, strict=True)
        found = torch.autograd.grad(values, self.weights, along, retain_graph=True, materialize_grads=True)
        torch.cat([part.detach().reshape(-1) for part in found], out=result)
