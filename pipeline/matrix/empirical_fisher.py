"""The second moment of the gradients of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import PipelineError, first_line, must_reach_user
from pipeline.matrix.output_gradient import gradient_along, moments, output_gradient
from pipeline.objective import (
    Batch,
    Criterion,
    LinearizedOutputs,
    Objective,
    Params,
    Product,
    Reference,
    Tree,
    check_outputs_count_samples,
    linearized,
)


@dataclass(frozen=True)
class EmpiricalFisher:
    """E = w Σ_n g_n g_nᵀ, g_n the gradient of the loss of sample n and its target; w = 1/N for a mean, 1 for a sum.

    It is the Hessian of ½ w Σ_n (c_n · J_n (θ - θ₀))², c_n the slope of the loss of sample n by its outputs. It is
    not the Fisher matrix, whose targets are drawn from the model (Kunstner et al. 2019, arXiv:1905.12558).

    Raises:
        PipelineError: the criterion is neither the mean nor the sum of the losses of its samples, or it is not known
            which outputs are of which sample.
    """

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        def loss(outputs: Any) -> Tensor:
            return objective.loss_of(params, outputs, batch.targets)

        check_outputs_count_samples(objective.predict, params, batch, loss, "matrix=empirical_fisher")
        is_mean: list[bool] = []

        def squares(criterion: Criterion) -> Criterion:
            return _Squares(criterion, is_mean, batch.num_samples)

        linear = linearized(objective, params, batch, squares)
        outputs = linear.predict(params, batch.inputs).outputs

        def evaluate(outputs: Any, targets: Any) -> Tensor:
            return objective.loss_of(params, outputs, targets).detach()

        is_mean.append(_is_mean(evaluate, outputs, batch))
        return linear, batch

    def product(self, reference: Reference, direction: Tensor, targets: Any, by_autograd: bool) -> Product:
        """E v = w Jᵀ Σ_n c_n (c_n · J_n v)."""
        outputs, n = reference.outputs(), reference.num_samples
        is_mean = _is_mean(reference.evaluate, outputs, reference.batch)
        return moments(reference, direction, [reference.batch.targets], n if is_mean else 1.0, by_autograd, n)


@dataclass(frozen=True, eq=False)
class _Squares:
    criterion: Criterion
    is_mean: list[bool]
    num_samples: int

    def __call__(self, outputs: LinearizedOutputs, targets: Any) -> Tensor:
        slopes = output_gradient(self.criterion, outputs.outputs, targets)
        moves = gradient_along(slopes, outputs.changes, self.num_samples)
        return moves.square().sum() / 2 * (len(moves) if self.is_mean[0] else 1)


def _counts(value: Tensor, n: int) -> bool:
    return value.ndim > 0 and len(value) % n == 0


def _losses(criterion: Criterion, tree: Tree, targets: Any) -> list[tuple[list[Tensor], Tensor]]:
    """Outputs and their losses: at the outputs as they are, and at others."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(f.shape, generator=generator) for f in tree.tensors]

    def at(move: Callable[[Tensor, Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        moved = [
            move(f, r.to(f)) if f.is_floating_point() else f for f, r in zip(tree.tensors, drawn, strict=True)
        ]
        return moved, criterion(tree.like(moved), targets)

    first = at(lambda f, r: f)
    try:
        return [first, at(lambda f, r: f + 4 * r - 2)]
    except Exception:  # a criterion may raise anything where it does not take an output
        return [first, at(lambda f, r: f * (1 - r / 2))]


def _is_mean(criterion: Criterion, outputs: Any, batch: Batch) -> bool:
    """Whether the loss of a batch is the mean of the losses of its samples, each alone, and not their sum.

    Read off losses at the outputs and at some that are moved, because at a loss of zero both candidates pass; towards
    zero, where a criterion takes no others (probabilities, say). Cost: 2 N losses of one sample.
    """
    n, tree = batch.num_samples, Tree.of(outputs, every=True)
    if n == 1:
        return True  # the same as a sum
    candidates = {True, False}
    for moved, loss in _losses(criterion, tree, batch.targets):
        try:
            losses = []
            for i in range(n):
                mine = [f[i * len(f) // n : (i + 1) * len(f) // n] if _counts(f, n) else f for f in moved]
                losses.append(criterion(tree.like(mine), batch.chunk(i, i + 1).targets))
            alone = torch.stack(losses).double()
        except Exception as error:  # a criterion of pairs, say
            if must_reach_user(error):
                raise
            raise PipelineError(
                f"matrix=empirical_fisher: the criterion cannot take a sample alone ({first_line(error)}): "
                "use matrix=ggn."
            ) from error
        tolerance = torch.finfo(loss.dtype).eps ** 0.5 * float(alone.abs().sum())
        gaps = {True: n * loss.double() - alone.sum(), False: loss.double() - alone.sum()}
        candidates &= {kind for kind, value in gaps.items() if abs(float(value)) <= tolerance}
    if not candidates:
        raise PipelineError(
            "matrix=empirical_fisher: the criterion is neither the mean nor the sum of the losses of its samples "
            "(class weights or ignored labels?): use reduction='sum', or matrix=ggn."
        )
    return True in candidates
