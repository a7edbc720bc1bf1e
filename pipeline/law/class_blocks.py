"""How the blocks of the Hessian that couple classes, or hidden units, shrink with the number of classes C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.law.nets import agree, half_squared_error, matrix, normal, perceptron
from pipeline.objective import Criterion
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_counts

CROSS_ENTROPY = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class ClassBlocks:
    """Squared Frobenius norms of blocks between classes or hidden units over those on the diagonal, against C.

    num_samples, dimension: of Gaussian samples with random labels. num_hidden: units of the ReLU net, whose first layer
    is the same for all C. num_draws: of the second layer, over which squared norms of the first layer's blocks are
    averaged.
    """

    TITLE: ClassVar[str] = "Blocks of the Hessian between classes shrink as there are more of them"
    SOURCE: ClassVar[str] = "Dong, Zhang, Yao and Sun 2025, arXiv:2505.02809"

    seed: int
    num_classes: Sequence[int] = (2, 4, 8, 16, 32, 64, 128)
    num_samples: int = 100
    dimension: int = 5
    num_hidden: int = 6
    num_draws: int = 24

    def __post_init__(self) -> None:
        check_counts("law.num_classes", self.num_classes, minimum=2)
        for name in ("num_samples", "dimension", "num_hidden", "num_draws"):
            check_count(f"law.{name}", getattr(self, name), minimum=2 if name == "num_hidden" else 1)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: two Hessians of the first layer for each C and draw, and one of the last layer and of a regression."""
        torch.manual_seed(self.seed)
        inputs, first = normal(self.num_samples, self.dimension), _drawn(self.num_hidden, self.dimension)
        classes, rho = np.array(self.num_classes, float), overlap(first, inputs)
        regression = np.array([regression_ratios(inputs, C) for C in self.num_classes])
        entropy, squared = (
            np.array([self._hidden(inputs, C, first, criterion) for C in self.num_classes])
            for criterion in (CROSS_ENTROPY, half_squared_error)
        )
        last = np.array([last_layer_ratio(inputs, C, first) for C in self.num_classes])
        laws = rho / (classes + 1), rho / (classes + 2), 1 / (classes - 1)
        zero = "softmax regression at W = 0: every ratio and 1 / (C − 1)"
        checks = [
            agree("regression", zero, regression, np.stack([laws[2]] * 2, 1), 1.0),
            _mean(
                "hidden_squared_error",
                "hidden units, squared error: ratio² over ρ / (C + 2)",
                squared / laws[1],
            ),
            _mean(
                "hidden_cross_entropy",
                "hidden units, cross-entropy: ratio² over ρ / (C + 1)",
                entropy / laws[0],
            ),
            _mean("last_layer", "last layer, cross-entropy: ratio² over 1 / (C − 1)²", last / laws[2] ** 2),
            _power(
                "power_hidden",
                "hidden units, cross-entropy: power of C + 1 in ratio²",
                classes + 1,
                entropy,
                -1.0,
            ),
            _power(
                "power_last", "last layer, cross-entropy: power of C − 1 in ratio²", classes - 1, last, -2.0
            ),
        ]
        sentence = (
            f"At W = 0 the ratio is 1 / (C − 1) to {checks[0].measured:.0e}; in a random net squared ratios fall as "
            f"C to the power {checks[4].measured:.2f} (hidden units) and {checks[5].measured:.2f} (last layer)."
        )
        series = [
            Series("softmax regression at W = 0", classes, regression.mean(axis=1) ** 2, "points"),
            Series("last layer, cross-entropy", classes, last, "points"),
            Series("hidden units, cross-entropy", classes, entropy, "points"),
            Series("hidden units, squared error", classes, squared, "points"),
            Series("ρ / (C + 1)", classes, laws[0], "dashes"),
            Series("1 / (C − 1)²", classes, laws[2] ** 2, "dashes"),
        ]
        reading = (
            "Mean of ‖block off the diagonal‖² over mean of ‖block on it‖² (Frobenius), at random weights."
        )
        panel = Panel("Blocks off the diagonal", "classes C", "squared ratio", series, reading, "xy")
        return Outcome(sentence, checks, [panel])

    def _hidden(self, inputs: Tensor, C: int, first: Tensor, criterion: Criterion) -> float:
        """The mean square of blocks between hidden units over that of their own, over draws of the second layer."""
        sums = np.zeros(2)
        for _ in range(self.num_draws):
            net = _net(first, C)
            targets = (
                normal(len(inputs), C)
                if criterion is half_squared_error
                else torch.randint(C, (len(inputs),))
            )
            sums += _mean_squares(
                matrix(net, criterion, inputs, targets, parameters="0.weight"), self.num_hidden
            )
        return float(sums[0] / sums[1])


def regression_ratios(inputs: Tensor, C: int) -> tuple[float, float]:
    """The least and the largest ‖H_cc'‖ / ‖H_cc‖ of softmax regression at W = 0, with random labels."""
    net = perceptron([inputs.shape[1], C], bias=False)
    next(net.parameters()).data.zero_()
    norms = _norms(matrix(net, CROSS_ENTROPY, inputs, torch.randint(C, (len(inputs),))), C)
    ratios = (norms / norms.diagonal()[:, None])[~np.eye(C, dtype=bool)]
    return float(ratios.min()), float(ratios.max())


def last_layer_ratio(inputs: Tensor, C: int, first: Tensor) -> float:
    """The mean square of blocks between classes of the last layer over that of their own."""
    targets = torch.randint(C, (len(inputs),))
    off, on = _mean_squares(matrix(_net(first, C), CROSS_ENTROPY, inputs, targets, parameters="2.weight"), C)
    return float(off / on)


def overlap(first: Tensor, inputs: Tensor) -> float:
    """ρ: the mean of ‖G_ik‖² over that of ‖G_ii‖², with G_ik = (1/N) Σ_n 1[w_i x_n > 0] 1[w_k x_n > 0] x_n x_nᵀ."""
    active = (inputs @ first.T > 0).double()
    G = torch.einsum("ni,nk,np,nq->ipkq", active, active, inputs, inputs) / len(inputs)
    off, on = _mean_squares(G.reshape(first.numel(), -1), len(first))
    return float(off / on)


def _drawn(outputs: int, inputs: int) -> Tensor:
    """Gaussian weights of variance 1 / (3 fan-in), as large as those that PyTorch draws for a linear layer."""
    weights: Tensor = normal(outputs, inputs) / (3 * inputs) ** 0.5
    return weights


def _net(first: Tensor, C: int) -> nn.Sequential:
    """A ReLU net with this first layer, and a random second one."""
    net = perceptron([first.shape[1], len(first), C], nn.ReLU(), bias=False)
    for weight, values in zip(net.parameters(), (first, _drawn(C, len(first))), strict=True):
        weight.data = values.clone()
    return net


def _norms(symmetric: Tensor, num_blocks: int) -> Array:
    """The Frobenius norm of each of num_blocks × num_blocks blocks of one size."""
    size = len(symmetric) // num_blocks
    norms: Array = symmetric.reshape(num_blocks, size, num_blocks, size).square().sum((1, 3)).sqrt().numpy()
    return norms


def _mean_squares(symmetric: Tensor, num_blocks: int) -> Array:
    """The mean squared norm of blocks off the diagonal, and of those on it."""
    squares, on = _norms(symmetric, num_blocks) ** 2, np.eye(num_blocks, dtype=bool)
    return np.array([squares[~on].mean(), squares[on].mean()])


def _mean(key: str, name: str, ratios: Array) -> Check:
    """Whether measured values over those of the law have the mean one, over all C."""
    return Check(key, f"{name}, mean", float(ratios.mean()), "=", 1.0, 0.3)


def _power(key: str, name: str, x: Array, ratios: Array, expected: float) -> Check:
    """The power of x by which squared ratios fall, fitted by least squares of logarithms."""
    return Check(key, name, float(np.polyfit(np.log(x), np.log(ratios), 1)[0]), "=", expected, 0.2)
