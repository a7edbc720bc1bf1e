"""The second moment of the gradients of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError
from pipeline.linearised import Linear, Linearisation
from pipeline.matrix.slopes import along, slopes_of
from pipeline.objective import Batch, Criterion, Objective, Params


@dataclass(frozen=True)
class EmpiricalFisher:
    """E = w Σ_n g_n g_nᵀ, g_n the gradient of the loss of sample n and its target; w = 1/N for a mean, 1 for a sum.

    It is the Hessian of ½ w Σ_n (c_n · J_n (θ - θ₀))², c_n the slope of the loss of sample n by its outputs. It is not
    the Fisher matrix, whose targets are drawn from the model (Kunstner et al. 2019, arXiv:1905.12558).

    Raises:
        PipelineError: the criterion is neither the mean nor the sum of the losses of its samples.
    """

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        with torch.no_grad():
            outputs = objective.predict(params, batch.inputs)
        is_mean = _is_mean(objective.criterion, outputs, batch.targets)
        return Objective(
            Linearisation(objective.predict, params), _Squares(objective.criterion, is_mean)
        ), batch


@dataclass(frozen=True)
class _Squares:
    criterion: Criterion
    is_mean: bool

    def __call__(self, outputs: Linear, targets: Any) -> Tensor:
        moves = along(slopes_of(self.criterion, outputs.outputs, targets), outputs.changes)
        return moves.square().sum() / 2 * (len(moves) if self.is_mean else 1)


def _is_mean(criterion: Criterion, outputs: Any, targets: Any) -> bool:
    """Whether the loss of a batch is the mean of the losses of its samples, each alone, and not their sum.

    Read off losses at the outputs and at some that are moved, because at a loss of zero both candidates pass.
    Cost: 2 N losses of one sample.
    """
    n = Batch(outputs, targets).num_samples
    if n == 1:
        return True  # the same as a sum
    candidates = {True, False}
    generator = torch.Generator().manual_seed(0)
    for size in (0.0, 1.0):
        moved = pytree.tree_map(
            lambda f, size=size: f + size * torch.randn(f.shape, generator=generator).to(f), outputs
        )
        batch = Batch(moved, targets)
        loss = criterion(*batch)
        alone = torch.stack([criterion(*batch.chunk(i, i + 1)) for i in range(n)]).double()
        tolerance = torch.finfo(loss.dtype).eps ** 0.5 * float(alone.abs().sum())
        error = {True: n * loss.double() - alone.sum(), False: loss.double() - alone.sum()}
        candidates &= {kind for kind, value in error.items() if abs(float(value)) <= tolerance}
    if not candidates:
        raise PipelineError(
            "matrix=empirical_fisher: the criterion is neither the mean nor the sum of the losses of its samples "
            "(class weights or ignored labels?): use reduction='sum', or matrix=ggn."
        )
    return True in candidates
