"""The catapult: at learning rates above 2/λ₀ the loss grows first, and training ends in a flatter minimum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.criterion import SquaredError
from pipeline.law.nets import normal
from pipeline.operator import curvature_operator, gram_spectrum
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.spectrum import eigenpairs
from pipeline.system import RunFolder
from pipeline.validation import check_count

LAZY, CATAPULT, DIVERGENT = (0.5, 1.0, 1.5, 1.9), (2.2, 2.5, 3.0, 3.5, 3.8), (4.2, 4.5)  # η λ₀
SHOWN = (1.0, 1.9, 2.5, 3.5, 4.2)  # of which the training curves are drawn
DIVERGED = 1e12  # a loss so many times the first one is taken for the end
BISECTIONS = 9
SAMPLE, TARGET = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)


class LinearNet(nn.Module):
    """f(x) = vᵀ u x / sqrt(n), of one number x: two layers without activation, entries of u and v N(0, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(normal(width))
        self.second = nn.Parameter(normal(width))

    def forward(self, x: Tensor) -> Tensor:  # (N, 1) -> (N, 1)
        outputs: Tensor = (x * self.first) @ self.second[:, None] / len(self.first) ** 0.5
        return outputs


@dataclass(frozen=True)
class Catapult:
    """Three phases of the learning rate η of a two-layer linear net, with borders at 2/λ₀ and 4/λ₀.

    The net has one sample, x = 1 with y = 0; λ₀ is the eigenvalue of its Gauss-Newton matrix before training.
    width: hidden units. num_steps: of gradient descent.
    """

    TITLE: ClassVar[str] = "The catapult of large learning rates"
    SOURCE: ClassVar[str] = "Lewkowycz, Bahri, Dyer, Sohl-Dickstein and Gur-Ari 2020, arXiv:2003.02218"

    seed: int
    width: int = 1000
    num_steps: int = 400

    def __post_init__(self) -> None:
        check_count("law.width", self.width, minimum=100)
        check_count("law.num_steps", self.num_steps, minimum=100)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: some thirty trainings on one sample, and an eigenpair after each of nine."""
        first = gauss_newton_eigenvalue(self._net())
        runs = {rate: self._train(rate / first) for rate in (*LAZY, *CATAPULT, *DIVERGENT)}
        ends = {rate: sharpness(runs[rate][1]) / first for rate in (*LAZY, *CATAPULT)}
        growth = {rate: float(losses.max() / losses[0]) for rate, (losses, _) in runs.items()}
        final = {rate: float(losses[-1] / losses[0]) for rate, (losses, _) in runs.items()}
        grows = self._border(first, 1.5, 2.5, lambda losses: bool(losses.max() > losses[0]))
        diverges = self._border(first, 3.5, 4.5, lambda losses: bool(losses[-1] > DIVERGED * losses[0]))
        checks = [
            Check("catapult_border", "η λ₀ above which the loss grows at first", grows, "=", 2.0, 0.05),
            Check("divergence_border", "η λ₀ above which training diverges", diverges, "=", 4.0, 0.05),
            *_phase_checks(growth, final, ends),
            self._recursion_check(first),
        ]
        sentence = (
            f"The loss grows at first above η λ₀ = {grows:.3f}, and training diverges above {diverges:.3f}; between "
            f"them it ends in minima of {min(ends[rate] for rate in CATAPULT):.2g} to "
            f"{max(ends[rate] for rate in CATAPULT):.2g} times the first eigenvalue."
        )
        curves = {rate: self._train(rate / first)[0] for rate in SHOWN}
        return Outcome(sentence, checks, [_curves_panel(curves), _ends_panel(ends)])

    def _net(self) -> LinearNet:
        torch.manual_seed(self.seed)
        return LinearNet(self.width)

    def _train(self, learning_rate: float) -> tuple[Array, LinearNet]:
        net = self._net()
        return descend(net, learning_rate, self.num_steps), net

    def _border(self, first: float, low: float, high: float, is_above: Callable[[Array], bool]) -> float:
        """η λ₀ from which on the losses of a training are `is_above`, by bisection."""
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if is_above(self._train(middle / first)[0]) else (middle, high)
        return (low + high) / 2

    def _recursion_check(self, first: float) -> Check:
        """Whether the output follows the two numbers f and λ alone, as the source derives."""
        net, rate, num_steps = self._net(), 3.0 / first, 30
        outputs, _ = recursion(net(SAMPLE).item(), first, self.width, rate, num_steps)
        losses = descend(net, rate, num_steps)
        error = float(np.abs(np.sqrt(2 * losses) - np.abs(outputs)).max() / np.abs(outputs).max())
        name = "distance of |f_t| to its recursion, relative to the largest, η λ₀ = 3"
        return Check("recursion", name, error, "=", 0.0, 1e-8)


def descend(net: LinearNet, learning_rate: float, num_steps: int) -> Array:
    """Gradient descent on ½ f²: the losses before each step and after the last one; it ends early where it diverges."""
    optimizer = torch.optim.SGD(net.parameters(), learning_rate)
    losses: list[float] = []
    for _ in range(num_steps + 1):
        loss = SquaredError()(net(SAMPLE), TARGET)
        losses.append(loss.item())
        if len(losses) > num_steps or not losses[-1] <= DIVERGED * losses[0]:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.array(losses)


def recursion(output: float, eigenvalue: float, width: int, learning_rate: float, num_steps: int) -> Array:
    """f_t and λ_t of gradient descent on ½ f², (2, num_steps + 1).

    f ← (1 − η λ + η² f² / n) f, λ ← λ + η f² (η λ − 4) / n, for λ = (‖u‖² + ‖v‖²) / n.
    """
    path = [(output, eigenvalue)]
    for _ in range(num_steps):
        f, curvature = path[-1]
        square = learning_rate * f**2 / width
        path.append(
            (
                (1 - learning_rate * curvature + learning_rate * square) * f,
                curvature + square * (learning_rate * curvature - 4),
            )
        )
    return np.array(path).T


def gauss_newton_eigenvalue(net: LinearNet) -> float:
    """The one eigenvalue of the Gauss-Newton matrix that is not zero, ‖∂f/∂(u, v)‖²."""
    return float(gram_spectrum(net, SquaredError(), SAMPLE, TARGET).eigenvalues[0])


def sharpness(net: LinearNet) -> float:
    """The largest eigenvalue of the Hessian, from products."""
    operator = curvature_operator(net, SquaredError(), (SAMPLE, TARGET))
    return float(eigenpairs(operator, top=1, bottom=0).values[0])


def _phase_checks(
    growth: Mapping[float, float], final: Mapping[float, float], ends: Mapping[float, float]
) -> list[Check]:
    """growth, final: the largest and the last loss in units of the first one; ends: λ at the end, of λ₀."""
    converged = max(final[rate] for rate in (*LAZY, *CATAPULT))
    change = max(abs(ends[rate] - 1) for rate in LAZY)
    least = min(growth[rate] for rate in CATAPULT)
    edge = max(rate * ends[rate] for rate in CATAPULT)
    names = [f"η λ₀ from {rates[0]:g} to {rates[-1]:g}" for rates in (LAZY, CATAPULT, DIVERGENT)]
    return [
        Check("lazy_growth", f"largest loss / first, {names[0]}", max(growth[c] for c in LAZY), "=", 1.0),
        Check("lazy_eigenvalue", f"largest change of λ / λ₀, {names[0]}", change, "≤", 0.05),
        Check("catapult_growth", f"largest loss / first, smallest of {names[1]}", least, "≥", 2.0),
        Check("convergence", "last loss / first, largest below η λ₀ = 4", converged, "≤", 0.01),
        Check("flatter", f"η λ at the end, largest of {names[1]}", edge, "≤", 2.0),
        Check(
            "divergence",
            f"last loss / first, smallest of {names[2]}",
            min(final[rate] for rate in DIVERGENT),
            "≥",
            DIVERGED,
        ),
    ]


def _curves_panel(curves: Mapping[float, Array]) -> Panel:
    series = [
        Series(f"η λ₀ = {rate:g}", np.arange(len(losses))[:60], losses[:60])
        for rate, losses in curves.items()
    ]
    reading = "Between η λ₀ = 2 and 4 the loss grows by a factor of the width, and falls again."
    return Panel("Loss along training", "step", "½ f²", series, reading, "y")


def _ends_panel(ends: Mapping[float, float]) -> Panel:
    rates = np.array(list(ends))
    border = np.linspace(rates.min(), rates.max(), 100)
    series = [
        Series("λ at the end / λ₀", rates, np.array(list(ends.values())), "points"),
        Series("2 / (η λ₀)", border, 2 / border, "dashes"),
    ]
    reading = (
        "Where the first eigenvalue lies above 2/η, training ends below that line, in a flatter minimum."
    )
    return Panel("Curvature of the minimum", "η λ₀", "λ / λ₀", series, reading)
