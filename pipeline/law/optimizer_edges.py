"""Edges of stability of optimizers with momentum and of Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from pipeline.criterion import SquaredError
from pipeline.data import Digits
from pipeline.errors import PipelineError
from pipeline.model import MLP
from pipeline.operator import CurvatureOperator, curvature_operator
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.spectrum import eigenpairs
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_number

TOLERANCE = 0.05  # of the mean of λmax at rest, relative to the edge
EIGENVALUE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class PreconditionedOperator:
    """P^-½ H P^-½ for a diagonal P > 0, known by its products; its eigenvalues are those of P⁻¹ H."""

    operator: CurvatureOperator
    preconditioner: Array  # (P,), the diagonal

    @property
    def num_rows(self) -> int:
        return self.operator.num_rows

    def matvec(self, vectors: Array) -> Array:
        """The product with (P, m) vectors."""
        root = np.sqrt(self.preconditioner)[:, None]
        product: Array = self.operator.matvec(vectors / root) / root
        return product


class Method(NamedTuple):
    """An optimizer and its edge: the curvature λ of a quadratic loss above which its steps grow."""

    key: str
    name: str
    edge: float
    make: Callable[[list[nn.Parameter]], Optimizer]


class Curve(NamedTuple):
    """Along training: steps, losses, and the largest eigenvalue, preconditioned where the optimizer does so."""

    steps: Array
    losses: Array
    largest: Array


@dataclass(frozen=True)
class OptimizerEdges:
    """λmax of the Hessian H under momentum, and of P^-½ H P^-½ under Adam, against the edge of each.

    heavy_ball_rate, nesterov_rate, adam_rate: η of each. momentum: β of heavy ball and Nesterov. num_samples: digits.
    hidden_size: of a tanh net. num_steps: of each training. num_measurements: of λmax, of which the last third counts.
    """

    TITLE: ClassVar[str] = "Edges of stability of momentum and Adam"
    SOURCE: ClassVar[str] = "Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484"

    seed: int
    heavy_ball_rate: float = 0.7
    nesterov_rate: float = 0.45
    momentum: float = 0.5
    adam_rate: float = 0.008
    num_samples: int = 500
    hidden_size: int = 12
    num_steps: int = 3600
    num_measurements: int = 18

    def __post_init__(self) -> None:
        for name in ("heavy_ball_rate", "nesterov_rate", "adam_rate"):
            check_number(f"law.{name}", getattr(self, name), above=0)
        check_number("law.momentum", self.momentum, minimum=0, below=1)
        for name in ("num_samples", "hidden_size", "num_steps"):
            check_count(f"law.{name}", getattr(self, name))
        check_count("law.num_measurements", self.num_measurements, minimum=3)
        if self.num_measurements > self.num_steps:
            raise PipelineError(
                f"law.num_measurements={self.num_measurements}, of {self.num_steps} steps: give fewer."
            )

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: three trainings on all samples, and num_measurements largest eigenvalues in each."""
        curves = {method.key: self._follow(method) for method in self.methods()}
        late = slice(-(self.num_measurements // 3), None)
        checks = []
        for method in self.methods():
            ratios = curves[method.key].largest / method.edge
            name = f"λmax / edge, {method.name}, mean of the last third"
            checks.append(Check(method.key, name, float(ratios[late].mean()), "=", 1.0, TOLERANCE))
            losses = curves[method.key].losses
            falls = float(losses[late].min() / losses[: self.num_measurements // 3].min())
            name = f"lowest loss of the last third / of the first third, {method.name}"
            checks.append(Check(f"{method.key}_loss", name, falls, "≤", 1.0))
        rest = ", ".join(f"{checks[2 * place].measured:.3f}" for place in range(3))
        sentence = (
            f"In the last third λmax is {rest} of the edge of heavy ball, of Nesterov's method, and of Adam, whose "
            "Hessian is preconditioned."
        )
        return Outcome(sentence, checks, _panels(self.methods(), curves))

    def methods(self) -> list[Method]:
        β, heavy, nesterov, adam = self.momentum, self.heavy_ball_rate, self.nesterov_rate, self.adam_rate
        betas = 0.9, 0.999  # of Adam
        return [
            Method(
                "heavy_ball",
                f"heavy ball, β = {β:g}",
                2 * (1 + β) / heavy,
                lambda weights: SGD(weights, heavy, momentum=β),
            ),
            Method(
                "nesterov",
                f"Nesterov, β = {β:g}",
                2 * (1 + β) / (nesterov * (1 + 2 * β)),
                lambda weights: SGD(weights, nesterov, momentum=β, nesterov=True),
            ),
            Method(
                "adam",
                "Adam, β₁ = 0.9",
                2 * (1 + betas[0]) / ((1 - betas[0]) * adam),
                lambda weights: Adam(weights, adam, betas),
            ),
        ]

    def _follow(self, method: Method) -> Curve:
        torch.manual_seed(self.seed)
        samples = Digits(num_samples=self.num_samples).load()
        images: Any = samples.train.inputs
        inputs, targets = images.double() - images.double().mean(0), samples.train.targets
        net = MLP(samples.input_shape, samples.num_outputs, [self.hidden_size]).double()
        optimizer = method.make(list(net.parameters()))
        measured = np.linspace(0, self.num_steps, self.num_measurements + 1).astype(int)[1:]
        rows = []
        for step in range(1, self.num_steps + 1):
            optimizer.zero_grad()
            loss = SquaredError()(net(inputs), targets)
            loss.backward()
            optimizer.step()
            if not torch.isfinite(loss):
                raise PipelineError(
                    f"law: training by {method.name} diverged at step {step}: lower its rate."
                )
            if step in measured:
                rows.append((step, loss.item(), largest_eigenvalue(net, inputs, targets, optimizer)))
        return Curve(*np.array(rows).T)


def largest_eigenvalue(net: nn.Module, inputs: Tensor, targets: Tensor, optimizer: Optimizer) -> float:
    """λmax of H, or of P^-½ H P^-½ where the optimizer is Adam."""
    operator = curvature_operator(net, SquaredError(), (inputs, targets))
    matrix: CurvatureOperator | PreconditionedOperator = operator
    if isinstance(optimizer, Adam):
        matrix = PreconditionedOperator(operator, adam_preconditioner(optimizer))
    return float(eigenpairs(matrix, top=1, bottom=0, tolerance=EIGENVALUE_TOLERANCE).values[0])


def adam_preconditioner(optimizer: Adam) -> Array:
    """The diagonal P of w ← w − η P⁻¹ m, m the running mean of the gradient as Adam holds it, (P,).

    P = (1 − β₁^t) (sqrt(v / (1 − β₂^t)) + ε), in the order of the optimizer's weights.
    """
    parts = []
    for group in optimizer.param_groups:
        first, second = group["betas"]
        for weight in group["params"]:
            state = optimizer.state[weight]
            step = float(state["step"])
            root = (state["exp_avg_sq"] / (1 - second**step)).sqrt() + group["eps"]
            parts.append((1 - first**step) * root.flatten())
    diagonal: Array = torch.cat(parts).numpy()
    return diagonal


def _panels(methods: list[Method], curves: dict[str, Curve]) -> list[Panel]:
    eigenvalues = [
        Series(method.name, curves[method.key].steps, curves[method.key].largest / method.edge, "points")
        for method in methods
    ]
    steps = curves[methods[0].key].steps
    eigenvalues.append(Series("edge", steps[[0, -1]], [1.0, 1.0], "dashes"))
    losses = [Series(method.name, curves[method.key].steps, curves[method.key].losses) for method in methods]
    return [
        Panel(
            "Largest eigenvalue in units of the edge",
            "step",
            "λmax / edge",
            eigenvalues,
            "Each optimizer has an edge of its own, to which λmax comes and near which it stays.",
        ),
        Panel(
            "Loss",
            "step",
            "loss",
            losses,
            "The loss goes on falling in the long run, though not at each step.",
            "y",
        ),
    ]
