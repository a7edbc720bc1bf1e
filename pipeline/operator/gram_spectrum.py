"""All eigenvalues of Gauss-Newton matrices of any size."""

from __future__ import annotations

from collections.abc import Sequence
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
    full_precision,
    objective_of,
)
from pipeline.strategy import gram_matrix
from pipeline.validation import named


@dataclass(frozen=True)
class GramSpectrum:
    """The eigenvalues that may differ from zero, descending, at most N·C; the other ones of P are zero."""

    eigenvalues: NDArray[np.float64]
    num_parameters: int

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
) -> GramSpectrum:
    """All eigenvalues of the GGN, the Fisher matrix or the empirical one, at any number of weights P.

    They are those of a matrix of N·C rows, for N samples with C outputs each, which is made layer by layer: neither P²
    nor N·C·P numbers are ever held. Samples must not influence each other in the model. Arguments are those of
    `hessian`.

    Cost: C backward passes, (N·C)² FLOP for each unit and input of a layer, and the eigenvalues, 4/3 (N·C)³ FLOP.

    Raises:
        PipelineError: as `hessian`; the matrix is no Gauss-Newton matrix, the criterion is not convex, or samples mix.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> gram_spectrum(net, lambda f, y: (f - y).square().sum() / 2, x, torch.zeros(2, 1)).eigenvalues
    array([4., 1.])
    """
    kind, place = named(matrix, MATRICES, "matrix"), device_named(device)
    with torch.inference_mode(False), torch.enable_grad(), full_precision():
        objective, params = objective_of(model, criterion, parameters, dtype, place)
        example: Any = next(iter(params.values()))
        batch = Batch.of(inputs, targets).to(example.device, example.dtype)
        check_loss(objective, params, batch)
        transformed, drawn = kind.problem(objective, params, batch)
        gram = gram_matrix(objective, params, batch, transformed, drawn)
    num_parameters = Layout.of(params).num_parameters
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).cpu().numpy()[:num_parameters]
    return GramSpectrum(values, num_parameters)
