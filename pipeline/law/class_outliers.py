"""How many eigenvalues of the Hessian stand out where samples fall into classes, and what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data import Blobs
from pipeline.errors import PipelineError
from pipeline.law.class_means import ClassParts, class_parts, descending
from pipeline.law.nets import ROUNDING, agree, matrix, perceptron
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_number

CROSS_ENTROPY = nn.CrossEntropyLoss()
MOST_UPDATES = 20_000
CLEAR = 1.2  # the formulas of spikes are compared where these lie so far above the edge of the bulk


@dataclass(frozen=True)
class ClassOutliers:
    """Spectra of softmax regression and of a tanh net on Gaussian blobs, one for each class.

    num_classes: C, at least 3. dimension: of a sample, above C. samples_per_class: of the blobs. separations: of two
    centers, ascending, of regression at W = 0; the last one is also that of the trained nets. offsets: lengths of an
    input that all samples share, over that of a center. error: training ends where so much probability is not on the
    labels. hidden_size: of the tanh net.
    """

    TITLE: ClassVar[str] = "Classes make the outliers of a Hessian's spectrum"
    SOURCE: ClassVar[str] = (
        "Sagun et al. 2017, arXiv:1706.04454; Papyan 2019, arXiv:1901.08244; 2020, arXiv:2008.11865"
    )

    seed: int
    num_classes: int = 6
    dimension: int = 40
    samples_per_class: int = 100
    separations: Sequence[float] = (1, 2, 3, 4, 6, 8, 12, 16, 20)
    offsets: Sequence[float] = (0, 0.5, 1, 2, 4)
    error: float = 0.1
    hidden_size: int = 16

    def __post_init__(self) -> None:
        check_count("law.num_classes", self.num_classes, minimum=3)
        check_count("law.dimension", self.dimension, minimum=self.num_classes + 1)
        check_count("law.samples_per_class", self.samples_per_class, minimum=2)
        check_count("law.hidden_size", self.hidden_size)
        check_number("law.error", self.error, above=0, below=1)
        for name in ("separations", "offsets"):
            for value in getattr(self, name):
                check_number(f"law.{name}", value, minimum=0)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: two matrices of the tanh net, one of regression for each separation and offset, and all eigenvalues."""
        torch.manual_seed(self.seed)
        C, last = self.num_classes, self.separations[-1]
        spikes = np.array([self._spikes(separation) for separation in self.separations])
        inputs, targets = self._samples(last)
        regression = self._trained(perceptron([self.dimension, C], bias=False), inputs, targets)
        values = descending(matrix(regression, CROSS_ENTROPY, inputs, targets))
        parts = class_parts(regression, inputs, targets)
        shared = [self._shared(offset) for offset in self.offsets]
        checks = [
            *self._net_checks(),
            *self._spike_checks(spikes),
            *level_checks(values, parts, C),
            *self._offset_checks(shared),
        ]
        ratios = values[C - 1] / values[C], values[C * (C - 1) - 1] / values[C * (C - 1)]
        sentence = (
            f"{C} classes at a distance of {last:g}: {C} eigenvalues lie {ratios[0]:.1f} times above the next "
            f"{C * (C - 2)}, and these {ratios[1]:.1f} times above the bulk; {C} − 1 where classes share most of their "
            "inputs."
        )
        panels = [_spectrum_panel(values, parts, C), self._gap_panel(spikes), self._offset_panel(shared)]
        return Outcome(sentence, checks, panels)

    def _samples(self, separation: float) -> tuple[Tensor, Tensor]:
        blobs = Blobs(
            num_clusters=self.num_classes,
            dimension=self.dimension,
            separation=separation,
            num_samples=self.num_classes * self.samples_per_class,
            split_seed=self.seed,
        ).load()
        inputs: Any = blobs.train.inputs
        return inputs.double(), blobs.train.targets

    def _trained(
        self, net: nn.Sequential, inputs: Tensor, targets: Tensor, rate: float = 1.0
    ) -> nn.Sequential:
        """Gradient descent, of regression from zero, until the mean probability of other labels is `error`."""
        if len(net) == 1:
            net[0].weight.data.zero_()  # type: ignore[operator]
        step = rate * 2 / float(inputs.square().sum(1).mean())  # below 2 / λmax of regression, since Λ ≤ ½
        optimizer = torch.optim.SGD(net.parameters(), step)
        for _ in range(MOST_UPDATES):
            outputs = net(inputs)
            if float(missed(outputs, targets).mean()) <= self.error:
                return net
            optimizer.zero_grad()
            CROSS_ENTROPY(outputs, targets).backward()
            optimizer.step()
        raise PipelineError(
            f"law.error={self.error:g} was not reached in {MOST_UPDATES:,} updates: give a larger one, or "
            "law.separations that end with a larger one."
        )

    def _spikes(self, separation: float) -> tuple[float, float]:
        """C times H of regression at W = 0: mean of its largest C (C − 1) eigenvalues, and the one after them."""
        inputs, targets = self._samples(separation)
        net = perceptron([self.dimension, self.num_classes], bias=False)
        next(net.parameters()).data.zero_()
        values = self.num_classes * descending(matrix(net, CROSS_ENTROPY, inputs, targets))
        count = self.num_classes * (self.num_classes - 1)
        return float(values[:count].mean()), float(values[count])

    def spike_law(self, separation: float) -> tuple[float, float]:
        """What `_spikes` tends to: (1 + ℓ)(γ + ℓ) / ℓ and (1 + √γ)², ℓ = separation² / 2C, γ = (d − C) / N."""
        gamma = (self.dimension - self.num_classes) / (self.num_classes * self.samples_per_class)
        spike, edge = separation**2 / (2 * self.num_classes), (1 + gamma**0.5) ** 2
        return ((1 + spike) * (gamma + spike) / spike if spike > gamma**0.5 else edge), edge

    def _net_checks(self) -> list[Check]:
        """Papyan's decomposition of the GGN of a tanh net."""
        C = self.num_classes
        inputs, targets = self._samples(self.separations[-1] / 2)
        net = perceptron([self.dimension, self.hidden_size, C], nn.Tanh())
        net = self._trained(net, inputs, targets, rate=0.5)
        ggn, parts = matrix(net, CROSS_ENTROPY, inputs, targets, "ggn"), class_parts(net, inputs, targets)
        values, between = descending(ggn), descending(parts.between)
        within = float(descending(parts.within)[0])
        excess = max((between - values).max(), (values - between - within).max()) / values[0]
        whole = parts.between + parts.within
        share = float((between[:C] / values[:C]).mean())
        return [
            agree("parts", "GGN and its two parts", ggn, whole, float(ggn.abs().max())),
            _rank(
                "rank_between", "rank of the part between (class, label) means", parts.between, C * (C - 1)
            ),
            _rank("rank_class", "rank of the part between class means", parts.between_classes, C),
            _rank(
                "rank_cross", "rank of the part of labels in their class", parts.cross_classes, C * (C - 2)
            ),
            Check("bounds", "λ_i outside between .. between + λ₁(within)", float(excess), "≤", 0.0, ROUNDING),
            Check("share", f"λ_i of that part / λ_i of the GGN, mean of {C}", share, "≥", 0.9),
        ]

    def _spike_checks(self, spikes: Array) -> list[Check]:
        laws = np.array([self.spike_law(separation) for separation in self.separations])
        ratios = (spikes / laws)[laws[:, 0] > CLEAR * laws[:, 1]]
        farthest = ratios[:, 0][np.abs(ratios[:, 0] - 1).argmax()]
        return [
            Check(
                "spikes", "W = 0: outliers over their law, farthest from 1", float(farthest), "=", 1.0, 0.1
            ),
            Check(
                "edge",
                "W = 0: edge of the bulk over its law, mean",
                float(ratios[:, 1].mean()),
                "=",
                1.0,
                0.1,
            ),
        ]

    def _shared(self, offset: float) -> tuple[float, Array]:
        """Of blobs with an input that all samples share: λ_C over the mean of those above it, in the class part; H."""
        inputs, targets = self._samples(self.separations[-1])
        length = offset * self.separations[-1] / 2**0.5
        inputs = torch.cat([inputs, torch.full_like(inputs[:, :1], length)], dim=1)
        net = self._trained(perceptron([inputs.shape[1], self.num_classes], bias=False), inputs, targets)
        values = descending(class_parts(net, inputs, targets).between_classes)[: self.num_classes]
        return float(values[-1] / values[:-1].mean()), descending(matrix(net, CROSS_ENTROPY, inputs, targets))

    def offset_law(self, offset: float) -> float:
        """1 / (1 + C t² / (C − 1)) for an offset t: eigenvalues of (I − 11ᵀ / C) ∘ (I + t² 11ᵀ)."""
        return 1 / (1 + self.num_classes * offset**2 / (self.num_classes - 1))

    def _offset_checks(self, shared: list[tuple[float, Array]]) -> list[Check]:
        laws = np.array([self.offset_law(offset) for offset in self.offsets])
        ratios = np.array([ratio for ratio, _ in shared]) / laws
        C = self.num_classes
        return [
            Check(
                "offsets",
                "class part: λ_C / mean of those above, over its law, farthest from 1",
                float(ratios[np.abs(ratios - 1).argmax()]),
                "=",
                1.0,
                0.15,
            ),
            Check(
                "apart",
                f"eigenvalues above the largest gap of {C}, no shared input",
                gap(shared[0][1], C),
                "=",
                C,
            ),
            Check(
                "alike", f"the same, shared input of {self.offsets[-1]:g}", gap(shared[-1][1], C), "=", C - 1
            ),
        ]

    def _gap_panel(self, spikes: Array) -> Panel:
        fine = np.geomspace(max(self.separations[0], 1e-3), self.separations[-1], 200)
        laws = np.array([self.spike_law(each) for each in fine])
        series = [
            Series("mean outlier / edge", self.separations, spikes[:, 0] / spikes[:, 1], "points"),
            Series("law", fine, laws[:, 0] / laws[:, 1], "dashes"),
        ]
        reading = "Outliers leave the bulk where separation² / 2C passes √(d / N)."
        return Panel("Regression at W = 0", "separation of centers", "ratio", series, reading, "xy")

    def _offset_panel(self, shared: list[tuple[float, Array]]) -> Panel:
        fine = np.linspace(self.offsets[0], self.offsets[-1], 100)
        series = [
            Series("λ_C / mean above it", self.offsets, [ratio for ratio, _ in shared], "points"),
            Series("law", fine, [self.offset_law(each) for each in fine], "dashes"),
        ]
        reading = "Of C class directions one grows weak where the classes share most of their inputs."
        return Panel("C or C − 1", "shared input / length of a center", "ratio", series, reading)


def missed(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 − p of the label, (N,)."""
    found: Tensor = 1 - outputs.detach().softmax(1).gather(1, targets[:, None])[:, 0]
    return found


def level_checks(values: Array, parts: ClassParts, C: int) -> list[Check]:
    """C eigenvalues, C (C − 2) below them, and the bulk, of trained regression."""
    count = C * (C - 1)
    levels = float(values[:C].mean() / values[C:count].mean())
    law = level_ratio(parts.probabilities, parts.labels)
    return [
        Check(
            "outliers",
            f"eigenvalues above the largest gap of the first {count}",
            gap(values, count - 1),
            "=",
            C,
        ),
        Check(
            "both",
            "eigenvalues above the bulk: largest gap after these",
            gap(values, 2 * count, C),
            "=",
            count,
        ),
        Check("levels", "mean of the C / mean of the C (C − 2), over its law", levels / law, "=", 1.0, 0.15),
    ]


def level_ratio(probabilities: Array, labels: Array) -> float:
    """Λ = diag p − ppᵀ along e_label − 1/C over its mean along the other C − 2 directions; means over samples."""
    C = probabilities.shape[1]
    hit = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    along = C / (C - 1) * (hit * (1 - hit)).mean()
    trace = (1 - (probabilities**2).sum(axis=1)).mean()
    return float(along * (C - 2) / (trace - along))


def gap(values: Array, most: int, least: int = 0) -> int:
    """How many of the descending values lie above the largest ratio of two neighbors, more than `least`, up to most."""
    ratios = values[least:most] / values[least + 1 : most + 1]
    return least + int(ratios.argmax()) + 1


def _rank(key: str, name: str, part: Tensor, expected: int) -> Check:
    values = descending(part)
    return Check(key, name, int((values > ROUNDING * values[0]).sum()), "=", expected)


def _spectrum_panel(values: Array, parts: ClassParts, C: int) -> Panel:
    places = np.arange(1, len(values) + 1)
    shown = slice(2 * C * (C - 1))
    between = descending(parts.between)[: C * (C - 1)]
    series = [
        Series("Hessian", places[shown], values[shown], "points"),
        Series("between (class, label) means", places[: len(between)], between),
    ]
    reading = "C eigenvalues, then C (C − 2), then the bulk of what differs within a class."
    return Panel("Trained regression", "place", "eigenvalue", series, reading, "y")
