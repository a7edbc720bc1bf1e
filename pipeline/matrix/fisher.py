"""The Fisher matrix: the second moment of gradients whose targets are drawn from the model."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from pipeline.criterion import BinaryCrossEntropy, CrossEntropy, SquaredError
from pipeline.errors import PipelineError
from pipeline.matrix.ggn import gauss_newton
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
    linearized,
)
from pipeline.validation import check_count


@dataclass(frozen=True)
class Fisher:
    """F = κ Σ_n E[g_n g_nᵀ], g_n the gradient of -log p(y | x_n) with y drawn from the model; the loss is κ Σ -log p.

    num_draws: None takes the expectation, which for these criteria is the generalised Gauss-Newton matrix, because
        their outputs are natural parameters (Martens 2020, arXiv:1412.1193, section 9); a number averages over so
        many targets for each sample.
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
        likelihood = likelihood_of(objective.criterion)
        if self.num_draws is None:
            return linearized(objective, params, batch), batch

        def squares(criterion: Criterion) -> Criterion:
            return _DrawnSquares(criterion, likelihood)

        linear = linearized(objective, params, batch, squares)
        outputs = linear.predict(params, batch.inputs).outputs
        if not isinstance(outputs, Tensor):
            raise PipelineError(
                "matrix=fisher draws targets for models with one output tensor: use matrix.num_draws=null."
            )
        generator = torch.Generator().manual_seed(self.seed ^ _digest(batch))
        targets = likelihood.draw(outputs.double().cpu(), self.num_draws, generator).to(outputs.device)
        targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets
        return linear, Batch(batch.inputs, likelihood.without_ignored(targets, batch.targets))

    def product(self, reference: Reference, direction: Tensor, targets: Any, by_autograd: bool) -> Product:
        """F v = Jᵀ Σ c (c · J v) / (κ M) over samples and drawn targets; without draws it is the GGN's product."""
        if self.num_draws is None:
            return gauss_newton(reference, direction, by_autograd)
        outputs, drawn = (
            reference.outputs(),
            targets.to(reference.dtype) if targets.is_floating_point() else targets,
        )
        scale = likelihood_of(reference.criterion).scale(outputs, drawn) * self.num_draws
        return moments(reference, direction, drawn.unbind(1), 1 / scale, by_autograd, len(outputs))


@dataclass(frozen=True)
class Likelihood:
    """The criterion as κ times a negative log-likelihood.

    scale: κ for outputs of a shape and drawn targets. draw: targets (N, M, ...) for outputs (N, ...), in float64 on
    the CPU. ignored: the label of what does not count, or None.
    """

    scale: Callable[[Tensor, Tensor], float]
    draw: Callable[[Tensor, int, torch.Generator], Tensor]
    ignored: int | None = None

    def without_ignored(self, drawn: Tensor, targets: Any) -> Tensor:
        """The drawn targets, in which what did not count before does not count either."""
        if self.ignored is None or not isinstance(targets, Tensor) or targets.is_floating_point():
            return drawn
        return torch.where((targets == self.ignored)[:, None], self.ignored, drawn)


@dataclass(frozen=True, eq=False)
class _DrawnSquares:
    """½ / κ · mean over draws of Σ_n (∂L/∂f_n · Δ_n)²; targets are (N, M, ...)."""

    criterion: Criterion
    likelihood: Likelihood

    def __call__(self, outputs: LinearizedOutputs, targets: Tensor) -> Tensor:
        def moves(target: Tensor) -> Tensor:
            slopes = output_gradient(self.criterion, outputs.outputs, target)
            return gradient_along(slopes, outputs.changes, len(outputs.outputs))

        squares = vmap(moves, in_dims=1)(targets).square()  # (M, N)
        return squares.sum() / (2 * targets.shape[1] * self.likelihood.scale(outputs.outputs, targets))


def likelihood_of(criterion: Any) -> Likelihood:
    """What a criterion is the negative log-likelihood of.

    Raises:
        PipelineError: nothing can be drawn for it.
    """
    is_mean = getattr(criterion, "reduction", None) == "mean"
    plain = all(getattr(criterion, name, None) is None for name in ("weight", "pos_weight"))
    plain = plain and not getattr(criterion, "label_smoothing", 0)
    plain = plain and not getattr(criterion, "classes_last", False)
    if plain and isinstance(criterion, CrossEntropy | nn.CrossEntropyLoss):
        ignored = getattr(criterion, "ignore_index", -100)

        def share(f: Tensor, targets: Tensor) -> float:
            return 1 / max(1, int((targets[:, 0] != ignored).sum())) if is_mean else 1.0

        return Likelihood(share, _draw_labels, ignored)
    if plain and isinstance(criterion, BinaryCrossEntropy | nn.BCEWithLogitsLoss):
        return Likelihood(lambda f, _: 1 / f.numel() if is_mean else 1.0, _draw_coins)
    if isinstance(criterion, SquaredError):
        return Likelihood(lambda f, _: 1 / len(f) if is_mean else 1.0, _draw_values)
    if isinstance(criterion, nn.MSELoss):
        return Likelihood(lambda f, _: 2 / f.numel() if is_mean else 2.0, _draw_values)
    raise PipelineError(
        f"matrix=fisher draws targets from the model, and does not know how for {_line(criterion)}: "
        "choose cross-entropy "
        "without class weights or label smoothing, binary cross-entropy or squared error, or matrix=ggn."
    )


def _line(criterion: Any) -> str:
    """A criterion as it prints itself, in one line."""
    return " ".join(repr(criterion).split())


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
    first = next(iter(Tree.of(batch.inputs, every=True).tensors), torch.zeros(1))
    return zlib.crc32(first.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
