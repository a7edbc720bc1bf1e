"""The exact Hessian of a net with far more weights than its inputs can tell apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.law.nets import matrix, perceptron
from pipeline.objective import Criterion
from pipeline.shards import Array


@dataclass(frozen=True)
class Reduced:
    """H of a net (P, P) as Dᵀ H' D, where H' (k, k) is that of the same net on the span of its inputs, and D Dᵀ = I.

    values, vectors: eigenvalues of H' ascending, and its eigenvectors. span: (r, inputs) orthonormal rows that span the
    inputs. num_hidden: rows of the first weight, the parameter that has the inputs as columns.
    """

    values: Array
    vectors: Array
    span: Array
    num_hidden: int

    def down(self, vectors: Array) -> Array:
        """D times (P, m) vectors, (k, m)."""
        rank, num_inputs = self.span.shape
        first = self.num_hidden * num_inputs
        weight = vectors[:first].reshape(self.num_hidden, num_inputs, -1)
        return np.vstack([(self.span @ weight).reshape(self.num_hidden * rank, -1), vectors[first:]])

    def product(self, vectors: Array) -> Array:
        """H times (P, m) vectors."""
        small = self.vectors @ (self.values[:, None] * (self.vectors.T @ self.down(vectors)))
        first = self.num_hidden * len(self.span)
        weight = self.span.T @ small[:first].reshape(self.num_hidden, len(self.span), -1)
        return np.vstack([weight.reshape(-1, vectors.shape[1]), small[first:]])

    def seen_by(self, vectors: Array) -> tuple[Array, Array]:
        """The distribution that each unit vector (P, m) sees: points (k + 1,) ascending, weights (m, k + 1)."""
        weights = (self.vectors.T @ self.down(vectors)).T ** 2
        points = np.append(self.values, 0.0)
        order = np.argsort(points, kind="stable")
        return points[order], np.hstack([weights, 1 - weights.sum(1, keepdims=True)])[:, order]

    def all(self, num_rows: int) -> Array:
        """The eigenvalues of H, (P,) ascending: those of H', and zeros."""
        return np.sort(np.append(self.values, np.zeros(num_rows - len(self.values))))


def reduced_hessian(
    net: nn.Sequential, criterion: Criterion, inputs: Tensor, span: Array, targets: Tensor
) -> Reduced:
    """H of a tanh net by one that reads the coordinates of its inputs: W x = (W Sᵀ)(S x) for x = Sᵀ S x.

    net: linear layers with tanh between them. inputs: (N, inputs). span: (r, inputs) orthonormal rows S.
    """
    rows = torch.from_numpy(span)
    widths = [len(span), *(layer.out_features for layer in net if isinstance(layer, nn.Linear))]
    small = perceptron(widths, nn.Tanh())
    weights = {name: each.detach() for name, each in net.named_parameters()}
    small.load_state_dict({**weights, "0.weight": weights["0.weight"] @ rows.T})
    values, vectors = np.linalg.eigh(matrix(small, criterion, inputs @ rows.T, targets).numpy())
    return Reduced(values, vectors, span, widths[1])
