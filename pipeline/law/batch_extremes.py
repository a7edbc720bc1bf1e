"""Extreme eigenvalues of the Hessian of a batch against those of all samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import hessian, sample_hessians
from pipeline.criterion import SquaredError
from pipeline.errors import PipelineError
from pipeline.law.nets import exponent, normal, perceptron
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_counts

LABEL_NOISE = 0.3  # standard deviation, beside the outputs of a teacher
SHIFT = 0.5  # mean of each input: it makes one eigenvalue stand out
TRAINING_STEPS, TRAINING_RATE = 200, 0.01  # of Adam


@dataclass(frozen=True)
class BatchExtremes:
    """How far the extreme eigenvalues of a batch's Hessian lie outside those of all N samples, by the batch size B.

    Of an eigenvalue that stands out the excess is ∝ 1/B − 1/N; where all samples together have no curvature, and a
    batch's is noise, it is ∝ 1/sqrt(B).
    batch_sizes: B below N, drawn without replacement. noise_batch_sizes: B of the matrix that is noise, each batch with
    samples of its own. num_draws, noise_draws: batches of each size.
    """

    TITLE: ClassVar[str] = "Extreme eigenvalues of the Hessian of a batch"
    SOURCE: ClassVar[str] = "Granziol, Zohren and Roberts 2022, arXiv:2006.09092"

    seed: int
    num_samples: int = 512
    batch_sizes: Sequence[int] = (16, 32, 64, 128, 256, 384)
    num_draws: int = 200
    noise_batch_sizes: Sequence[int] = (64, 128, 256, 512, 1024, 2048)
    noise_draws: int = 16
    dimension: int = 8
    hidden_size: int = 8

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_draws", "noise_draws", "dimension", "hidden_size"):
            check_count(f"law.{name}", getattr(self, name), minimum=2)
        for name in ("batch_sizes", "noise_batch_sizes"):
            sizes = check_counts(f"law.{name}", getattr(self, name))
            if len(set(sizes)) < 2:
                raise PipelineError(f"law.{name}={list(sizes)}: give two different sizes at least.")
        if max(self.batch_sizes) >= self.num_samples:
            raise PipelineError(
                f"law.batch_sizes has {max(self.batch_sizes)}, of {self.num_samples} samples: give smaller batches."
            )

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: N matrices (P, P) at once, the eigenvalues of one for each batch drawn."""
        torch.manual_seed(self.seed)
        net, inputs, targets = self._trained()
        matrices = sample_hessians(net, SquaredError(), inputs, targets)
        sizes = np.array(self.batch_sizes, float)
        inverse = 1 / sizes - 1 / self.num_samples
        draws = [excesses(matrices, B, self.num_draws) for B in self.batch_sizes]
        excess = np.array([each.centered.mean(0) for each in draws])
        law = second_order(matrices) * inverse
        noise_sizes, noise = np.array(self.noise_batch_sizes, float), self._noise()
        batch = torch.arange(self.batch_sizes[0])
        difference = hessian(net, SquaredError(), inputs[batch], targets[batch]) - matrices[batch].mean(0)
        slope, noise_slope = exponent(inverse, excess[:, 0]), exponent(noise_sizes, noise)
        ratio = float(excess[-1, 0] / law[-1])
        largest, smallest = f"B = {self.batch_sizes[-1]}", f"B = {self.batch_sizes[0]}"
        above, below = (draws[0].plain * [1, -1] > 0).mean(0)
        error = float(difference.abs().max())
        checks = [
            Check("slope", "exponent of the excess of λmax in 1/B − 1/N", slope, "=", 1.0, 0.1),
            Check("second_order", f"excess of λmax / perturbation theory, {largest}", ratio, "=", 1.0, 0.1),
            Check("above", f"share of batches with λmax above that of all, {smallest}", above, "≥", 0.5),
            Check("below", f"share of batches with λmin below that of all, {smallest}", below, "≥", 0.5),
            Check("noise_slope", "exponent of λmax in B, pure noise", noise_slope, "=", -0.5, 0.1),
            Check(
                "batch_is_mean", "H of a batch − mean of H of its samples, largest", error, "=", 0.0, 1e-10
            ),
        ]
        factor = second_order(matrices) / independent_entries(matrices)
        sentence = (
            f"The largest eigenvalue of a batch exceeds that of all samples by c (1/B − 1/N), exponent {slope:.3f}; c "
            f"is {factor:.3g} times P σ²/λ₁, that of independent entries. Where the matrix is noise the exponent in "
            f"B is {noise_slope:.3f}."
        )
        return Outcome(sentence, checks, [_panel(inverse, excess, law), _noise_panel(noise_sizes, noise)])

    def _trained(self) -> tuple[nn.Module, Tensor, Tensor]:
        """A net that was trained towards a teacher with noisy labels, and its samples."""
        inputs = normal(self.num_samples, self.dimension) + SHIFT
        net, teacher = self._net(), self._net()
        targets = teacher(inputs).detach()
        targets += LABEL_NOISE * normal(*targets.shape)
        optimizer = torch.optim.Adam(net.parameters(), TRAINING_RATE)
        for _ in range(TRAINING_STEPS):
            optimizer.zero_grad()
            SquaredError()(net(inputs), targets).backward()
            optimizer.step()
        return net, inputs, targets

    def _net(self) -> nn.Sequential:
        return perceptron([self.dimension, self.hidden_size, 1], nn.Tanh())

    def _noise(self) -> Array:
        """The mean over batches of λmax of H − G, whose expectation is zero: labels are f + N(0, 1)."""
        net = self._net()

        def largest(batch_size: int) -> Iterator[float]:
            for _ in range(self.noise_draws):
                inputs = normal(batch_size, self.dimension)
                targets = net(inputs).detach() + normal(batch_size, 1)
                residual = hessian(net, SquaredError(), inputs, targets, matrix="residual")
                yield float(torch.linalg.eigvalsh(residual)[-1])

        return np.array([np.mean(list(largest(batch_size))) for batch_size in self.noise_batch_sizes])


class Excesses(NamedTuple):
    """λmax(H_B) − λmax(H) and λmin(H_B) − λmin(H) of each batch, (num_draws, 2).

    centered: without the first-order term uᵀ(H_B − H)u of the eigenvector u of H, whose expectation is zero. Means of
    both have the same expectation, that of `centered` has the smaller error.
    """

    plain: Array
    centered: Array


def excesses(matrices: Tensor, batch_size: int, num_draws: int) -> Excesses:
    """Of batches drawn without replacement from samples whose matrices are (N, P, P)."""
    N, P, _ = matrices.shape
    values, vectors = torch.linalg.eigh(matrices.mean(0))
    ends, vectors = values[[-1, 0]], vectors[:, [-1, 0]]
    chosen = torch.zeros(num_draws, N, dtype=matrices.dtype)
    for row in chosen:
        row[torch.randperm(N)[:batch_size]] = 1 / batch_size
    batches = (chosen @ matrices.reshape(N, -1)).reshape(num_draws, P, P)
    plain = torch.linalg.eigvalsh(batches)[:, [-1, 0]] - ends
    linear = torch.einsum("pe,bpq,qe->be", vectors, batches, vectors) - ends
    return Excesses(plain.numpy(), (plain - linear).numpy())


def second_order(matrices: Tensor) -> float:
    """The c of E λmax(H_B) − λmax(H) = c (1/B − 1/N) + O(1/B²): Σ_j Var_n(u_jᵀ H_n u₁) / (λ₁ − λ_j).

    The variance is over samples n, with N − 1 in its denominator; u_j are the eigenvectors of H.
    """
    values, vectors = torch.linalg.eigh(matrices.mean(0))
    variances = (vectors.T @ matrices @ vectors[:, -1:]).squeeze(2).var(0)
    return float((variances[:-1] / (values[-1] - values[:-1])).sum())


def independent_entries(matrices: Tensor) -> float:
    """P σ² / λ₁: what the c of `second_order` is for an outlier λ₁ and independent entries of variance σ²."""
    top = torch.linalg.eigvalsh(matrices.mean(0))[-1]
    return float(matrices.shape[1] * matrices.var(0).mean() / top)


def _panel(inverse: Array, excess: Array, law: Array) -> Panel:
    series = [
        Series("λmax of a batch − λmax of all", inverse, excess[:, 0], "points"),
        Series("second-order perturbation", inverse, law, "dashes"),
        Series("λmin of all − λmin of a batch", inverse, -excess[:, 1], "points"),
    ]
    reading = "The outlier follows 1/B − 1/N; the lower edge of the bulk, where eigenvalues are dense, grows slower."
    return Panel("Trained net", "1/B − 1/N", "mean excess", series, reading, "xy")


def _noise_panel(sizes: Array, noise: Array) -> Panel:
    series = [
        Series("λmax of H − G of a batch", sizes, noise, "points"),
        Series("∝ 1/sqrt(B)", sizes, noise[0] * np.sqrt(sizes[0] / sizes), "dashes"),
    ]
    reading = "Labels are the outputs plus noise: H − G of all samples is zero, that of a batch is noise."
    return Panel("Residual part, pure noise", "batch size B", "mean λmax", series, reading, "xy")
