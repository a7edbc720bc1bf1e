"""The Fisher matrix: the second moment of gradients whose targets are drawn from the model."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from pipeline.criterion import BinaryCrossEntropy, CrossEntropy, SquaredError
from pipeline.errors import PipelineError
from pipeline.linearised import Linear, Linearisation, linearised
from pipeline.matrix.slopes import along, slopes_of
from pipeline.objective import Batch, Criterion, Objective, Params
from pipeline.options import check_count


@dataclass(frozen=True)
class Fisher:
    """F = κ Σ_n E[g_n g_nᵀ], g_n the gradient of -log p(y | x_n) with y drawn from the model; the loss is κ Σ -log p.

    num_draws: None takes the expectation, which for these criteria is the generalised Gauss-Newton matrix, because
        their outputs are natural parameters (Martens 2020, arXiv:1412.1193, section 9); a number averages over so many
        targets for each sample.
    seed: of the draws; they are the same for every strategy and in every precision, and differ from batch to batch.

    Raises:
        PipelineError: the criterion is not the negative log-likelihood of labels or values that can be drawn.
    """

    num_draws: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("matrix.num_draws", self.num_draws, or_null="the expectation")
        check_count("matrix.seed", self.seed, minimum=0)

    def problem(self, objective: Objective, params: Params, batch: Batch) -> tuple[Objective, Batch]:
        likelihood = _likelihood_of(objective.criterion)
        if self.num_draws is None:
            return linearised(objective, params), batch
        with torch.no_grad():
            outputs = objective.predict(params, batch.inputs)
        if not isinstance(outputs, Tensor):
            raise PipelineError(
                "matrix=fisher draws targets for models with one output tensor: use matrix.num_draws=null."
            )
        generator = torch.Generator().manual_seed(self.seed ^ _digest(batch))
        targets = likelihood.draw(outputs.double().cpu(), self.num_draws, generator).to(outputs.device)
        targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets
        criterion = _DrawnSquares(objective.criterion, likelihood)
        return Objective(Linearisation(objective.predict, params), criterion), Batch(batch.inputs, targets)


@dataclass(frozen=True)
class Likelihood:
    """The criterion as κ times a negative log-likelihood.

    scale: κ for outputs of a shape. draw: targets (N, M, ...) for outputs (N, ...), in float64 on the CPU.
    """

    scale: Callable[[Tensor], float]
    draw: Callable[[Tensor, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class _DrawnSquares:
    """½ / κ · mean over draws of Σ_n (∂L/∂f_n · Δ_n)²; targets are (N, M, ...)."""

    criterion: Criterion
    likelihood: Likelihood

    def __call__(self, outputs: Linear, targets: Tensor) -> Tensor:
        def moves(target: Tensor) -> Tensor:
            return along(slopes_of(self.criterion, outputs.outputs, target), outputs.changes)

        squares = vmap(moves, in_dims=1)(targets).square()  # (M, N)
        return squares.sum() / (2 * targets.shape[1] * self.likelihood.scale(outputs.outputs))


def _likelihood_of(criterion: Any) -> Likelihood:
    is_mean = getattr(criterion, "reduction", None) == "mean"
    plain = all(getattr(criterion, name, None) is None for name in ("weight", "pos_weight"))
    plain = plain and not getattr(criterion, "label_smoothing", 0)
    if plain and isinstance(criterion, CrossEntropy | nn.CrossEntropyLoss):
        return Likelihood(lambda f: f.shape[1] / f.numel() if is_mean else 1.0, _draw_labels)
    if plain and isinstance(criterion, BinaryCrossEntropy | nn.BCEWithLogitsLoss):
        return Likelihood(lambda f: 1 / f.numel() if is_mean else 1.0, _draw_coins)
    if isinstance(criterion, SquaredError):
        return Likelihood(lambda f: 1 / len(f) if is_mean else 1.0, _draw_values)
    if isinstance(criterion, nn.MSELoss):
        return Likelihood(lambda f: 2 / f.numel() if is_mean else 2.0, _draw_values)
    raise PipelineError(
        f"matrix=fisher draws targets from the model, and does not know how for {criterion!r}: choose cross-entropy "
        "without class weights or label smoothing, binary cross-entropy or squared error, or matrix=ggn."
    )


def _draw_labels(outputs: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Labels (N, M, ...) for logits (N, C, ...): the first whose cumulative probability is above a uniform number."""
    cumulative = outputs.softmax(1).cumsum(1)[:, None]  # (N, 1, C, ...)
    shape = (len(outputs), num_draws, 1, *outputs.shape[2:])
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (uniform >= cumulative).sum(2).clamp(max=outputs.shape[1] - 1)


def _draw_coins(outputs: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    shape = (len(outputs), num_draws, *outputs.shape[1:])
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (uniform < outputs.sigmoid()[:, None]).double()


def _draw_values(outputs: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    shape = (len(outputs), num_draws, *outputs.shape[1:])
    return outputs[:, None] + torch.randn(shape, generator=generator, dtype=torch.float64)


def _digest(batch: Batch) -> int:
    """A number that tells batches apart."""
    first = pytree.tree_leaves(batch.inputs)[0]
    return zlib.crc32(first.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
