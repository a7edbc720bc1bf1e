"""The share of the gradient that lies in the eigenspace of the largest Hessian eigenvalues, along SGD."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import hessian
from pipeline.data import Digits
from pipeline.errors import PipelineError
from pipeline.law.nets import gradient, perceptron
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.spectrum import eigenspace_overlap, share_in_eigenspace
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_number

CROSS_ENTROPY = nn.CrossEntropyLoss()
NUM_CLASSES = 10
NUM_BATCHES = 20  # whose gradients are averaged at each measurement
NUM_RANDOM = 2000  # random directions, for the level of chance
FLAT = 1e-6  # eigenvalues below this share of the largest one pull no weight back: no stationary law


class Measured(NamedTuple):
    """At one step: shares in the top eigenspace, and mean squares of the gradient by noise."""

    step: int
    full: float  # of the gradient of all samples, mean over the steps that follow
    batch: float  # of the gradients of batches
    predicted: float  # of the gradient of all samples, by the law of noise
    strength: float  # mean square of the gradient in the eigenspace, over that law
    edge: float  # η λmax / 2
    top: Array  # (P, k) the eigenspace


@dataclass(frozen=True)
class TinySubspace:
    """Shares of the gradient in the top eigenspace of H under SGD, and under gradient descent from the same weights.

    num_samples: digits. hidden_size: tanh units. learning_rate, batch_size, num_steps: of SGD; the control takes all
    samples. num_measurements: along training; checks are of means over the last half. num_averaged: steps after each of
    them over which the gradient is averaged.
    """

    TITLE: ClassVar[str] = "The gradient of SGD lies in a tiny subspace"
    SOURCE: ClassVar[str] = "Gur-Ari, Roberts and Dyer 2018, arXiv:1812.04754"

    seed: int
    num_samples: int = 512
    hidden_size: int = 12
    learning_rate: float = 0.5
    batch_size: int = 32
    num_steps: int = 1000
    num_measurements: int = 10
    num_averaged: int = 40

    def __post_init__(self) -> None:
        check_number("law.learning_rate", self.learning_rate, above=0)
        for name in ("num_samples", "hidden_size", "batch_size", "num_steps", "num_averaged"):
            check_count(f"law.{name}", getattr(self, name))
        check_count("law.num_measurements", self.num_measurements, minimum=2)
        if self.num_measurements > self.num_steps:
            raise PipelineError(
                f"law.num_measurements={self.num_measurements}, of {self.num_steps} steps: give fewer."
            )

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: two trainings, and at each measurement the Hessian, all its eigenvectors, and N gradients."""
        noisy, control = self._follow(self.batch_size), self._follow(None)
        late = slice(self.num_measurements // 2, None)
        shares, controls = (np.array([each.full for each in run]) for run in (noisy, control))
        tops = [each.top for each in noisy]
        chance = NUM_CLASSES / len(tops[0])
        kept = np.mean(
            [eigenspace_overlap(a, b) for a, b in zip(tops[late][:-1], tops[late][1:], strict=True)]
        )
        batch, strength, law = (
            float(np.mean([getattr(each, name) for each in noisy[late]]))
            for name in ("batch", "strength", "predicted")
        )
        share, descent = float(shares[late].mean()), float(controls[late].mean())
        checks = [
            Check("share", "SGD: share of the gradient of all samples", share, "≥", 0.5),
            Check("batch", "SGD: share of the gradient of a batch", batch, "≥", 0.5),
            Check("law", "the first over the share by the law of noise", share / law, "=", 1.0, 0.15),
            Check("strength", "SGD: |g|² in the subspace over the law of noise", strength, "=", 1.0, 0.5),
            Check("control", "gradient descent: share of the gradient", descent, "≤", chance),
            Check(
                "stable",
                "gradient descent: η λmax / 2, largest",
                max(each.edge for each in control),
                "≤",
                1.0,
            ),
            Check(
                "chance",
                "share of random directions over k / P",
                self._random(tops[-1]) / chance,
                "=",
                1.0,
                0.1,
            ),
            Check("kept", f"overlap of the subspaces {self._interval} steps apart", float(kept), "≥", 0.5),
        ]
        sentence = (
            f"{share:.2f} of the gradient under SGD lies in {NUM_CLASSES} of {len(tops[0]):,} dimensions, where chance "
            f"puts {chance:.3f}; under gradient descent at the same rate {descent:.1e}."
        )
        return Outcome(sentence, checks, [_panel(noisy, control, chance), _strength_panel(noisy)])

    @property
    def _interval(self) -> int:
        return self.num_steps // self.num_measurements

    def _random(self, top: Array) -> float:
        vectors = np.random.default_rng(self.seed).standard_normal((NUM_RANDOM, len(top)))
        return _mean_share(vectors, top)

    def _follow(self, batch_size: int | None) -> list[Measured]:
        """Train, and measure before the last steps of each interval. batch_size: None for all samples."""
        torch.manual_seed(self.seed)
        samples = Digits(num_samples=self.num_samples).load().train
        images: Any = samples.inputs
        inputs, targets = images.double().flatten(1), samples.targets
        net = perceptron([inputs.shape[1], self.hidden_size, NUM_CLASSES], nn.Tanh())
        found = []
        for interval in range(1, self.num_measurements + 1):
            num_averaged = min(self.num_averaged, self._interval)
            self._train(net, inputs, targets, batch_size, self._interval - num_averaged)
            spectrum = _spectrum(net, inputs, targets)
            batches = [self._batch(len(inputs), self.batch_size) for _ in range(NUM_BATCHES)]
            means = [gradient(net, CROSS_ENTROPY, inputs[each], targets[each]).numpy() for each in batches]
            law = self._law(net, inputs, targets, *spectrum)
            squares = self._train(net, inputs, targets, batch_size, num_averaged, spectrum[1])
            top = spectrum[1][:, :NUM_CLASSES]
            found.append(
                Measured(
                    interval * self._interval,
                    float(squares[:NUM_CLASSES].sum() / squares.sum()),
                    _mean_share(means, top),
                    float(law[:NUM_CLASSES].sum() / law.sum()),
                    float(squares[:NUM_CLASSES].sum() / law[:NUM_CLASSES].sum()),
                    self.learning_rate * spectrum[0][0] / 2,
                    top,
                )
            )
        return found

    def _train(
        self,
        net: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int | None,
        num_steps: int,
        vectors: Array | None = None,
    ) -> Array:
        """Steps w ← w − η g; mean squares of the gradient of all samples along the vectors (P, k), if there are any."""
        squares = np.zeros(0 if vectors is None else vectors.shape[1])
        for _ in range(num_steps):
            chosen = self._batch(len(inputs), batch_size)
            step = torch.autograd.grad(
                CROSS_ENTROPY(net(inputs[chosen]), targets[chosen]), tuple(net.parameters())
            )
            with torch.no_grad():
                for weight, part in zip(net.parameters(), step, strict=True):
                    weight.sub_(part, alpha=self.learning_rate)
            if vectors is not None:
                squares += (gradient(net, CROSS_ENTROPY, inputs, targets).numpy() @ vectors) ** 2 / num_steps
        return squares

    def _batch(self, num_samples: int, batch_size: int | None) -> Tensor:
        """Numbers of samples, drawn with replacement; all of them for None."""
        return torch.arange(num_samples) if batch_size is None else torch.randint(num_samples, (batch_size,))

    def _law(self, net: nn.Module, inputs: Tensor, targets: Tensor, values: Array, vectors: Array) -> Array:
        """Mean squares of the gradient along the eigenvectors that the noise of batches keeps up."""
        variance = (sample_gradients(net, inputs, targets) @ vectors).var(axis=0) / self.batch_size
        return noise_law(values, variance, self.learning_rate)


def noise_law(values: Array, variance: Array, learning_rate: float) -> Array:
    """E g_i² = η λ_i σ_i² / (2 − η λ_i) of SGD at rest on ½ Σ λ_i w_i², σ_i² the variance of the noise of its gradient.

    Where λ_i is zero or below nothing comes to rest, and zero is given.
    """
    curved = np.where(values > FLAT * values.max(), learning_rate * values, 0.0)
    squares: Array = curved * variance / (2 - curved)
    return squares


def sample_gradients(net: nn.Module, inputs: Tensor, targets: Tensor) -> Array:
    """The gradient of the loss of each sample, (N, P)."""
    params = {name: each.detach() for name, each in net.named_parameters()}

    def loss(weights: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        lost: Tensor = CROSS_ENTROPY(torch.func.functional_call(net, weights, (sample[None],)), target[None])
        return lost

    parts = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, inputs, targets)
    rows: Array = torch.cat([each.flatten(1) for each in parts.values()], dim=1).numpy()
    return rows


def _mean_share(vectors: Iterable[Array], top: Array) -> float:
    return float(np.mean([share_in_eigenspace(each, top) or 0.0 for each in vectors]))


def _spectrum(net: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Array, Array]:
    """All eigenvalues of H, descending, and its eigenvectors, (P, P)."""
    values, vectors = np.linalg.eigh(hessian(net, CROSS_ENTROPY, inputs, targets).numpy())
    return values[::-1], vectors[:, ::-1]


def _panel(noisy: list[Measured], control: list[Measured], chance: float) -> Panel:
    steps = [float(each.step) for each in noisy]
    series = [
        Series("SGD, all samples", steps, [each.full for each in noisy], "points"),
        Series("SGD, a batch", steps, [each.batch for each in noisy], "points"),
        Series("law of noise", steps, [each.predicted for each in noisy], "dashes"),
        Series("gradient descent", steps, [each.full for each in control], "points"),
        Series("k / P", [steps[0], steps[-1]], [chance, chance], "dashes"),
    ]
    reading = "Noise keeps the gradient of SGD in the top eigenspace; without it the gradient leaves it."
    return Panel("Share in the top eigenspace", "step", "share", series, reading, "y")


def _strength_panel(noisy: list[Measured]) -> Panel:
    steps = [float(each.step) for each in noisy]
    series = [
        Series("SGD", steps, [each.strength for each in noisy], "points"),
        Series("law", [steps[0], steps[-1]], [1.0, 1.0], "dashes"),
    ]
    reading = "The squared gradient in the subspace is that of noise which curvature pulls back."
    return Panel("|g|² in the subspace over the law", "step", "ratio", series, reading)
