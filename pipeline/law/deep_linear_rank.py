"""Ranks of the Hessian of deep linear nets and of its two parts, in closed form; those of ReLU and tanh nets differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.law.nets import half_squared_error, matrix, normal, perceptron
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_counts, check_names

SMALLEST = 1e-11  # of the singular values that count, relative to the largest; rounding leaves 1e-15
LEAST_GAP = 1e6  # between the smallest one that counts and the largest one that does not
MATRICES = {"hessian": "H", "ggn": "H_o (GGN)", "residual": "H_f = H − H_o"}
ACTIVATIONS = {"linear": None, "ReLU": nn.ReLU(), "tanh": nn.Tanh()}
ARCHITECTURES = (
    *("3-4-2", "5-3-4", "4-2-5", "5-1-5", "4-8-3", "1-6-1", "5-6-1", "10-10-10"),
    *("3-6-6-2", "6-2-6-4", "4-5-3-4", "3-3-3-3", "6-6-6-6", "1-4-4-3", "7-4-5-6", "4-10-10-3"),
    *("2-5-5-5-2", "5-5-2-5-5", "8-3-8-3-8", "2-3-4-5-6", "6-5-4-3-2", "3-2-2-2-2-3"),
)


@dataclass(frozen=True)
class DeepLinearRank:
    """Ranks of H = H_o + H_f of the half squared error of linear nets without biases, counted from singular values.

    architectures: widths from inputs to outputs. num_samples: Gaussian ones, so many; where they are fewer than inputs,
    the rank r of their covariance is less than the number of inputs.
    """

    TITLE: ClassVar[str] = "Ranks of the Hessian of deep linear nets"
    SOURCE: ClassVar[str] = "Singh, Bachmann and Hofmann 2021, arXiv:2106.16225"

    seed: int
    architectures: Sequence[str] = ARCHITECTURES
    num_samples: Sequence[int] = (3, 20)

    def __post_init__(self) -> None:
        check_names("law.architectures", self.architectures, such_as="3-4-2", or_null="those of the law")
        for widths in self.architectures:
            words = widths.split("-")
            check_counts("law.architectures", [int(word) if word.isdecimal() else word for word in words])
        for count in self.num_samples:
            check_count("law.num_samples", count)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: 9 matrices for each architecture and number of samples, and their singular values."""
        cases = [Case.of(widths, N) for widths in self.architectures for N in self.num_samples]
        found: dict[str, list[list[Rank]]] = {}
        for name, activation in ACTIVATIONS.items():
            torch.manual_seed(self.seed)
            found[name] = [list(case.ranks(activation)) for case in cases]
        expected = np.array([case.expected for case in cases])
        counted = {name: np.array([[rank.count for rank in row] for row in found[name]]) for name in found}
        different = {name: counted[name] != expected for name in found}
        deficient = [i for i, case in enumerate(cases) if case.is_deficient(max(self.num_samples))]
        missed = {name: int(different[name][deficient, 0].sum()) for name in ("ReLU", "tanh")}
        checks = [
            *(_none(key, MATRICES[key], different["linear"][:, i]) for i, key in enumerate(MATRICES)),
            Check(
                "gap",
                "smallest ratio of singular values across the gap",
                min(rank.gap for row in found["linear"] for rank in row),
                "≥",
                LEAST_GAP,
            ),
            *(_most(name, missed[name], len(deficient)) for name in missed),
        ]
        right = len(cases) - int(different["linear"].any(axis=1).sum())
        sentence = (
            f"All three ranks are those of the formulas, to the integer, for {right} of {len(cases)} linear nets; of "
            f"{len(deficient)} nets with rank below P another is found for {missed['ReLU']} with ReLU, "
            f"{missed['tanh']} with tanh."
        )
        widest = max(
            deficient or range(len(cases)), key=lambda i: cases[i].num_weights - cases[i].expected[0]
        )
        shown = {name: found[name][widest][0] for name in found}
        return Outcome(sentence, checks, [_ranks(expected, counted["linear"]), _values(cases[widest], shown)])


def _none(key: str, text: str, differs: Array) -> Check:
    name = f"of {len(differs)} linear nets, those whose rank of {text} is another"
    return Check(f"{key}_ranks", name, float(differs.sum()), "=", 0.0)


def _most(activation: str, missed: int, count: int) -> Check:
    name = f"of {count} {activation} nets with rank below P, those whose rank of H is another"
    return Check(f"{activation.lower()}_ranks", name, float(missed), "≥", count / 2)


@dataclass(frozen=True)
class Rank:
    """Singular values in descending order, how many count, and the ratio across the gap; inf where it ends at 0."""

    values: Array
    count: int
    gap: float

    @staticmethod
    def of(symmetric: Tensor) -> Rank:
        values = torch.linalg.svdvals(symmetric).numpy()
        count = int((values > SMALLEST * values[0]).sum())
        below = float(values[count]) if count < len(values) else 0.0
        return Rank(values, count, float(values[count - 1]) / below if below else float("inf"))


@dataclass(frozen=True)
class Case:
    """Widths and a number of samples, with the ranks that the formulas give: of H, H_o and H_f."""

    widths: tuple[int, ...]
    num_samples: int
    expected: tuple[int, int, int]

    @staticmethod
    def of(text: str, num_samples: int) -> Case:
        widths = tuple(int(word) for word in text.split("-"))
        return Case(widths, num_samples, formulas(widths, num_samples))

    @property
    def num_weights(self) -> int:
        return sum(inputs * outputs for inputs, outputs in pairwise(self.widths))

    def is_deficient(self, num_samples: int) -> bool:
        """Whether the formula says that H is singular, with so many samples."""
        return self.num_samples == num_samples and self.expected[0] < self.num_weights

    def ranks(self, activation: nn.Module | None) -> Iterator[Rank]:
        """Those of the matrices of a net with weights of variance 1 / fan-in, Gaussian inputs and targets."""
        net = perceptron(self.widths, activation, bias=False)
        for weight in net.parameters():
            weight.data = normal(*weight.shape) / weight.shape[1] ** 0.5
        inputs, targets = normal(self.num_samples, self.widths[0]), normal(self.num_samples, self.widths[-1])
        for which in MATRICES:
            yield Rank.of(matrix(net, half_squared_error, inputs, targets, which))


def formulas(widths: Sequence[int], num_samples: int) -> tuple[int, int, int]:
    """Ranks of H, H_o and H_f for generic weights, inputs and targets.

    With r = min(N, d), K outputs, L layers, M hidden units together, q the least of r, K and all hidden widths, and
    s = min(r, K): 2qM − Lq² + q(r + K), q(r + K − q), 2qM + 2qs − Lq².

    >>> formulas((3, 4, 2), 10)
    (18, 6, 16)
    """
    r, K, L, M = min(num_samples, widths[0]), widths[-1], len(widths) - 1, sum(widths[1:-1])
    q, s = min(r, *widths[1:]), min(r, K)
    return 2 * q * M - L * q**2 + q * (r + K), q * (r + K - q), 2 * q * M + 2 * q * s - L * q**2


def _ranks(expected: Array, counted: Array) -> Panel:
    top = float(expected.max())
    return Panel(
        "Ranks of linear nets",
        "rank by the formula",
        "rank counted",
        [
            Series("formula", [0.0, top], [0.0, top], "dashes"),
            *(
                Series(text, expected[:, i], counted[:, i], "points")
                for i, text in enumerate(MATRICES.values())
            ),
        ],
        "Each point is a net and a number of samples.",
    )


def _values(case: Case, ranks: dict[str, Rank]) -> Panel:
    ends = [1e-18, 1.0]
    return Panel(
        f"Singular values of H, {'-'.join(map(str, case.widths))}, N = {case.num_samples}",
        "number of the singular value",
        "relative to the largest",
        [
            *(
                Series(
                    name,
                    np.arange(1, len(rank.values) + 1),
                    np.maximum(rank.values / rank.values[0], 1e-18),
                    "points",
                )
                for name, rank in ranks.items()
            ),
            Series(f"formula: {case.expected[0]}", [case.expected[0] + 0.5] * 2, ends, "dashes"),
        ],
        "Of the linear net they fall to rounding after the rank that the formula gives; those of other nets do not.",
        "y",
    )
