"""Eigenvalues of the Fisher matrix of a random net against its width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from pipeline.criterion import SquaredError
from pipeline.law.nets import exponent, normal, perceptron
from pipeline.operator import gram_spectrum
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_counts, check_number

NUM_NODES = 64  # of Gauss-Hermite quadrature, in each of two dimensions


@dataclass(frozen=True)
class FisherWidth:
    """Of a tanh net of width M with random weights: the mean eigenvalue of the Fisher matrix ∝ 1/M, the largest ∝ M.

    widths: M of inputs and hidden layers. num_samples: Gaussian inputs. num_layers: of weights. num_outputs: linear
    ones, with unit variance. weight_variance, bias_variance: σ_w², σ_b² of weights N(0, σ_w²/M) and biases N(0, σ_b²).
    num_nets: that are averaged.
    """

    TITLE: ClassVar[str] = "The Fisher matrix of random nets against their width"
    SOURCE: ClassVar[str] = "Karakida, Akaho and Amari 2019, arXiv:1806.01316"

    seed: int
    widths: Sequence[int] = (128, 256, 512, 1024)
    num_samples: int = 100
    num_layers: int = 3
    num_outputs: int = 2
    weight_variance: float = 3.0
    bias_variance: float = 0.64
    num_nets: int = 6

    def __post_init__(self) -> None:
        check_counts("law.widths", self.widths, minimum=2)
        for name in ("num_samples", "num_layers", "num_outputs", "num_nets"):
            check_count(f"law.{name}", getattr(self, name), minimum=2 if name == "num_layers" else 1)
        check_number("law.weight_variance", self.weight_variance, above=0)
        check_number("law.bias_variance", self.bias_variance, minimum=0)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: for each net the eigenvalues of a matrix of N·C rows, at any number of weights."""
        widths = np.array(self.widths, float)
        means, largest = np.array([self._averages(width) for width in self.widths]).T
        mean_limit, largest_limit = self.limits(widths)
        slopes = [exponent(widths, each) for each in (means, largest)]
        ratios = float(means[-1] / mean_limit[-1]), float(largest[-1] / largest_limit[-1])
        wide = f"M = {self.widths[-1]}"
        checks = [
            Check("mean_slope", "exponent of the mean eigenvalue in the width M", slopes[0], "=", -1.0, 0.05),
            Check("largest_slope", "exponent of the largest eigenvalue in M", slopes[1], "=", 1.0, 0.1),
            Check("mean_ratio", f"mean eigenvalue / its limit, {wide}", ratios[0], "=", 1.0, 0.05),
            Check("largest_ratio", f"largest eigenvalue / its limit, {wide}", ratios[1], "=", 1.0, 0.1),
        ]
        sentence = (
            f"The mean eigenvalue goes as M to the {slopes[0]:.3f}, the largest one as M to the {slopes[1]:.3f}; at "
            f"{wide} they are {ratios[0]:.3f} and {ratios[1]:.3f} of what mean-field theory gives."
        )
        series = [
            Series("largest", widths, largest, "points"),
            Series("largest, limit ∝ M", widths, largest_limit, "dashes"),
            Series("mean", widths, means, "points"),
            Series("mean, limit ∝ 1/M", widths, mean_limit, "dashes"),
        ]
        reading = (
            "Averages over nets lie on the limits of infinite width, without a parameter that is fitted."
        )
        panel = Panel("Fisher matrix of random nets", "width M", "eigenvalue", series, reading, "xy")
        return Outcome(sentence, checks, [panel])

    def limits(self, widths: Array) -> tuple[Array, Array]:
        """The mean and the largest eigenvalue for M → ∞: C S₁ / (α M) and M (S₂ (N − 1) + S₁) / N, α = L − 1.

        M S₁ and M S₂ are the inner products of output gradients of a sample with itself, and with another one.
        """
        same, other = gradient_products(TANH, self.num_layers, self.weight_variance, self.bias_variance)
        mean = self.num_outputs * same / ((self.num_layers - 1) * widths)
        return mean, widths * (other * (self.num_samples - 1) + same) / self.num_samples

    def _averages(self, width: int) -> tuple[float, float]:
        """The mean and the largest eigenvalue, averaged over nets with inputs of their own."""
        pairs = []
        for place in range(self.num_nets):
            torch.manual_seed(self.seed + place)
            inputs = normal(self.num_samples, width)
            targets = torch.zeros(self.num_samples, self.num_outputs, dtype=torch.float64)
            found = gram_spectrum(self._net(width), SquaredError(), inputs, targets, matrix="fisher")
            pairs.append((found.trace / found.num_parameters, found.eigenvalues[0]))
        mean, largest = np.mean(pairs, axis=0)
        return float(mean), float(largest)

    def _net(self, width: int) -> nn.Sequential:
        net = perceptron([width] * self.num_layers + [self.num_outputs], nn.Tanh())
        for weight in net.parameters():
            variance = self.bias_variance if weight.ndim == 1 else self.weight_variance / width
            nn.init.normal_(weight, std=variance**0.5)
        return net


class Activation(NamedTuple):
    """φ and φ′."""

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


TANH = Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2)


def gradient_products(
    activation: Activation, num_layers: int, weight_variance: float, bias_variance: float
) -> tuple[float, float]:
    """S₁ and S₂: inner products of output gradients by all weights, divided by the width, of one and of two samples.

    Inputs have second moment 1 and are orthogonal. Forward: q^l = E[φ(z)φ(z′)], z and z′ Gaussian with covariance
    σ_w² q^(l-1) + σ_b². Backward: d^L = 1, d^l = σ_w² d^(l+1) E[φ′(z)φ′(z′)]. S = Σ_l d^l q^(l-1), for z′ = z and
    for z′ of another sample.
    """
    variances, covariances = [1.0], [0.0]
    slopes = []  # E[φ′²], E[φ′φ′] of each hidden layer
    for _ in range(num_layers - 1):
        variance = weight_variance * variances[-1] + bias_variance
        covariance = weight_variance * covariances[-1] + bias_variance
        variances.append(gaussian_product(activation.value, variance, variance))
        covariances.append(gaussian_product(activation.value, variance, covariance))
        slopes.append(
            [gaussian_product(activation.derivative, variance, each) for each in (variance, covariance)]
        )
    backward = np.ones((1, 2))
    for pair in reversed(slopes):
        backward = np.concatenate([weight_variance * backward[:1] * pair, backward])
    same, other = (backward * np.array([variances, covariances]).T).sum(0)
    return float(same), float(other)


def gaussian_product(function: Callable[[Array], Array], variance: float, covariance: float) -> float:
    """E[f(z) f(z′)] of Gaussian z, z′ with mean 0, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    weights = weights / weights.sum()
    correlation = covariance / variance
    first = np.sqrt(variance) * nodes
    rest = np.sqrt(max(variance * (1 - correlation**2), 0.0)) * nodes
    second = correlation * first[:, None] + rest[None, :]
    return float(weights @ (function(first)[:, None] * function(second)) @ weights)
