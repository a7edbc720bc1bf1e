"""All eigenvalues of Gauss-Newton matrices of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.layout import Layout
from pipeline.matrix import MATRICES, Matrix
from pipeline.objective import (
    Batch,
    Criterion,
    Inputs,
    check_loss,
    device_named,
    differentiation,
    objective_of,
)
from pipeline.spectrum import DenseMatrix, Exact, eigenvalues_of
from pipeline.strategy import GramMatrix, gram_matrix
from pipeline.validation import named

ZERO = 1e-12  # relative: eigenvalues no larger than that have no eigenvectors of their own


@dataclass(frozen=True)
class GramSpectrum:
    """The eigenvalues that may differ from zero, descending, at most N·C; the other ones of P are zero.

    vectors: (P, k) eigenvectors of the k largest ones, as many as were asked for. traces: of the diagonal block of each
    parameter, by its name.
    """

    eigenvalues: NDArray[np.float64]
    num_parameters: int
    vectors: NDArray[np.float64]
    traces: Mapping[str, float]

    @property
    def trace(self) -> float:
        return float(self.eigenvalues.sum())


def gram_spectrum(
    model: nn.Module,
    criterion: Criterion,
    inputs: Inputs,
    targets: object,
    matrix: str | Matrix = "ggn",
    parameters: Sequence[str] | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    num_vectors: int = 0,
) -> GramSpectrum:
    """All eigenvalues of the GGN, the Fisher matrix or the empirical one, at any number of weights P.

    They are those of a matrix of N·C rows, for N samples with C outputs each, which is made layer by layer: neither P²
    nor N·C·P numbers are ever held. Samples must not influence each other in the model. Arguments are those of
    `hessian`. num_vectors: eigenvectors that are wanted beside, of the largest eigenvalues above zero.

    Cost: C backward passes, (N·C)² FLOP for each unit and input of a layer, and the eigenvalues, 4/3 (N·C)³ FLOP; a
    backward pass for each vector.

    Raises:
        PipelineError: as `hessian`; the matrix is no Gauss-Newton matrix, the criterion is not convex, or samples mix.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> gram_spectrum(net, lambda f, y: (f - y).square().sum() / 2, x, torch.zeros(2, 1)).eigenvalues
    array([4., 1.])
    """
    kind, place = named(matrix, MATRICES, "matrix"), device_named(device)
    with differentiation():
        objective, params = objective_of(model, criterion, parameters, dtype, place)
        example: Any = next(iter(params.values()))
        batch = Batch.of(inputs, targets).to(example.device, example.dtype)
        check_loss(objective, params, batch)
        transformed, drawn = kind.problem(objective, params, batch)
        gram = gram_matrix(objective, params, batch, transformed, drawn)
        layout = Layout.of(params)
        values, vectors = _decomposed(gram, layout.num_parameters, num_vectors)
    return GramSpectrum(values[: layout.num_parameters], layout.num_parameters, vectors, gram.traces)


def _decomposed(
    gram: GramMatrix, num_parameters: int, num_vectors: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All eigenvalues of K, descending, and of the first ones the eigenvectors Aᵀu / |Aᵀu| of AᵀA, (P, k)."""
    matrix = gram.values.cpu().numpy()
    if num_vectors == 0:
        found = eigenvalues_of(matrix, "auto")
        return found[::-1].clip(0), np.zeros((num_parameters, 0))
    spectrum = Exact(num_vectors).decompose(DenseMatrix(matrix))
    values = spectrum.eigenvalues[::-1].clip(0)
    above = int((values > ZERO * values.max(initial=0.0)).sum())
    vectors = np.zeros((num_parameters, min(num_vectors, above)))
    for index in range(vectors.shape[1]):
        column = gram.pull(torch.from_numpy(spectrum.top_eigenvectors[:, index].copy())).double()
        vectors[:, index] = (column / column.norm()).cpu().numpy()
    return values, vectors
