"""The distribution of eigenvalues by Lanczos quadrature against the exact one, at P = 15,910."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data import Digits
from pipeline.law.input_span import Reduced, reduced_hessian
from pipeline.law.nets import perceptron
from pipeline.operator import CurvatureOperator, curvature_operator
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.spectrum import Quadrature, SpectralDistribution
from pipeline.spectrum import distribution_of as density
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_counts

CROSS_ENTROPY = nn.CrossEntropyLoss()
RANK_TOLERANCE = 1e-5  # singular values of float32 pixels below this share of the largest one are rounding
WIDE, NARROW = 0.05, 0.01  # of Gaussians that smooth, where the spectrum is mapped to −1..1
NUM_VIEWS = 256  # random vectors whose deviations are averaged
NEAR_ZERO = 1e-3  # of the largest eigenvalue: below it lie the zeros, where distribution functions jump
ROUNDING = 1e-12  # of smoothed densities, relative to the peak of the Gaussian


@dataclass
class Recorded:
    """A matrix that keeps the first block it is multiplied with, which is where the Lanczos recurrences begin."""

    operator: CurvatureOperator
    first: Array | None = None

    @property
    def num_rows(self) -> int:
        return self.operator.num_rows

    def matvec(self, vectors: Array) -> Array:
        """The product with (P, m) vectors."""
        if self.first is None:
            self.first = np.array(vectors)
        return self.operator.matvec(vectors)


class Run(NamedTuple):
    """What so many steps found, and its errors: of polynomials by degree, of smoothed densities, of F."""

    steps: int
    found: SpectralDistribution
    polynomials: Array
    wide: float
    narrow: float
    distance: float


@dataclass(frozen=True)
class LanczosDensity:
    """Errors of Lanczos quadrature against its number of steps, beside the exact distribution.

    size: pixels each way of the digits. hidden_size: tanh units. num_updates: of gradient descent, before the Hessian
    is taken. num_vectors: random ones. num_steps: ascending; each is measured. By default P = 15,910.
    """

    TITLE: ClassVar[str] = "Lanczos quadrature finds the density of a Hessian's spectrum"
    SOURCE: ClassVar[str] = (
        "Ghorbani, Krishnan and Xiao 2019, arXiv:1901.10159; Chen, Trogdon and Ubaru 2021, arXiv:2105.06595"
    )

    seed: int
    size: int = 28
    hidden_size: int = 20
    num_samples: int = 512
    num_updates: int = 100
    num_vectors: int = 4
    num_steps: Sequence[int] = (4, 8, 16, 24, 32, 48, 64)

    def __post_init__(self) -> None:
        for name in ("size", "hidden_size", "num_samples", "num_vectors"):
            check_count(f"law.{name}", getattr(self, name))
        check_count("law.num_updates", self.num_updates, minimum=0)
        check_counts("law.num_steps", self.num_steps, minimum=2)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: num_vectors products for each step of each run; all eigenvalues of a net that reads the span."""
        torch.manual_seed(self.seed)
        inputs, span, targets = self._samples()
        net = self._trained(inputs, targets)
        exact = reduced_hessian(net, CROSS_ENTROPY, inputs, span, targets)
        operator = curvature_operator(net, CROSS_ENTROPY, (inputs, targets))
        values = exact.all(operator.num_rows)
        runs = [self._run(operator, exact, values, steps) for steps in self.num_steps]
        last = runs[-1]
        checks = [*_exactness(operator, exact, self.seed), *_polynomials(runs), *_smoothed(runs)]
        checks += _distribution(runs, values)
        sentence = (
            f"At P = {operator.num_rows:,}, {self.num_steps[-1]} steps of {self.num_vectors} vectors give the "
            f"distribution function to {last.distance:.1e} off zero, and what the vectors see, smoothed, to "
            f"{last.wide:.0e} of its peak."
        )
        return Outcome(sentence, checks, [_errors_panel(runs), _distribution_panel(values, last.found)])

    def _run(self, operator: CurvatureOperator, exact: Reduced, values: Array, steps: int) -> Run:
        recorded = Recorded(operator)
        found = density(recorded, self.num_vectors, steps, seed=self.seed)
        assert recorded.first is not None
        seen = exact.seen_by(recorded.first)
        return Run(
            steps,
            found,
            polynomial_errors(found.quadrature, seen, 2 * steps + 2),
            smoothing_error(found.quadrature, seen, WIDE),
            smoothing_error(found.quadrature, seen, NARROW),
            distance(found, values),
        )

    def _samples(self) -> tuple[Tensor, Array, Tensor]:
        """Images (N, size²) in float64, r orthonormal rows that span them, labels.

        Interpolated from 8 × 8 pixels the images span at most 64 directions, up to rounding in float32, which goes.
        """
        samples = Digits(size=self.size, num_samples=self.num_samples).load()
        images: Any = samples.train.inputs
        pixels = images.double().flatten(1)
        _, singular, rows = torch.linalg.svd(pixels, full_matrices=False)
        span = rows[singular > RANK_TOLERANCE * singular[0]]
        return pixels @ span.T @ span, span.numpy(), samples.train.targets

    def _trained(self, inputs: Tensor, targets: Tensor) -> nn.Sequential:
        net = perceptron([inputs.shape[1], self.hidden_size, 10], nn.Tanh())
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for _ in range(self.num_updates):
            optimizer.zero_grad()
            CROSS_ENTROPY(net(inputs), targets).backward()
            optimizer.step()
        return net


def polynomial_errors(quadrature: Quadrature, seen: tuple[Array, Array], num_degrees: int) -> Array:
    """Largest |∫ T_k dF̂_v − ∫ T_k dF_v| over the vectors, for each degree k of Chebyshev, (num_degrees,)."""
    points, weights = seen
    low, high = points[0], points[-1]

    def integrals(x: Array, measure: Array) -> Array:
        angles = np.arccos(np.clip((2 * x - low - high) / (high - low), -1, 1))
        polynomials: Array = np.cos(np.arange(num_degrees)[:, None] * angles)
        return measure @ polynomials.T

    difference = integrals(quadrature.nodes, quadrature.weights) - integrals(points, weights)
    errors: Array = np.abs(difference).max(axis=0)
    return errors


def smoothing_error(quadrature: Quadrature, seen: tuple[Array, Array], width: float) -> float:
    """Largest error of the density after a Gaussian of `width` half ranges, over its peak, for any vector."""
    points, weights = seen
    deviation = width * (points[-1] - points[0]) / 2
    x = np.linspace(points[0], points[-1], 1000)[:, None]

    def smooth(y: Array, measure: Array) -> Array:
        smoothed: Array = measure @ np.exp(-((x - y) ** 2) / (2 * deviation**2)).T
        return smoothed

    return float(np.abs(smooth(quadrature.nodes, quadrature.weights) - smooth(points, weights)).max())


def smoothing_bound(steps: int, width: float) -> float:
    """The least of 4 exp(b²/2σ²) ρ^(−2 steps) / (1 − 1/ρ), b = (ρ − 1/ρ)/2, over ellipses ρ > 1; σ the width."""
    ρ = 1 + np.geomspace(1e-3, 3, 500)
    b = (ρ - 1 / ρ) / 2
    return float(np.exp((b / width) ** 2 / 2 - 2 * steps * np.log(ρ) - np.log1p(-1 / ρ)).min() * 4)


def share_below(values: Array, x: Array) -> Array:
    """F(x): the share of the ascending values that are at most x."""
    share: Array = np.searchsorted(values, x, side="right") / len(values)
    return share


def holds(run: SpectralDistribution, values: Array) -> bool:
    """Whether the band holds F at each point where either jumps, and just before it."""
    jumps = np.unique(np.concatenate([values, run.points[1:]]))
    x = np.concatenate([jumps, np.nextafter(jumps, -np.inf)])
    low, high = run.at(x)
    share = share_below(values, x)
    return bool(((low <= share) & (share <= high)).all())


def distance(run: SpectralDistribution, values: Array) -> float:
    """The largest |F̂ − F| over |x| > NEAR_ZERO λmax."""
    jumps = np.unique(np.concatenate([values, run.quadrature.nodes]))
    x = np.concatenate([jumps, np.nextafter(jumps, -np.inf)])
    x = x[np.abs(x) > NEAR_ZERO * np.abs(values).max()]
    return float(np.abs(sums_below(run.quadrature, x) - share_below(values, x)).max())


def sums_below(quadrature: Quadrature, x: Array) -> Array:
    """F̂(x): the sum of the weights of nodes that are at most x, the mean over the vectors."""
    sums: Array = np.append(0.0, np.cumsum(quadrature.weights.mean(axis=0)))
    return sums[np.searchsorted(quadrature.nodes, x, side="right")]


def _exactness(operator: CurvatureOperator, exact: Reduced, seed: int) -> list[Check]:
    """That the exact spectrum is the operator's, and that random vectors see it as the Beta law says."""
    vectors = np.random.default_rng(seed).standard_normal((operator.num_rows, NUM_VIEWS))
    vectors /= np.linalg.norm(vectors, axis=0)
    few = vectors[:, :3]
    product = operator.matvec(few)
    error = np.linalg.norm(product - exact.product(few)) / np.linalg.norm(product)
    points, weights = exact.seen_by(vectors)
    deviations = np.cumsum(weights, axis=1)[:, :-1] - share_below(exact.all(len(vectors)), points)[:-1]
    share = share_below(exact.all(len(vectors)), points)[:-1]
    variance = 2 * share * (1 - share) / (len(vectors) + 2)
    name = f"variance of F_v over 2 F (1 − F) / (P + 2), {NUM_VIEWS} vectors"
    return [
        Check("reduction", "H v and Dᵀ H' D v, relative difference", float(error), "=", 0.0, 1e-9),
        Check("spread", name, float((deviations**2).mean() / variance.mean()), "=", 1.0, 0.3),
    ]


def _polynomials(runs: list[Run]) -> list[Check]:
    """Exact up to the degree 2 s − 1, and no further."""
    below = max(float(run.polynomials[:-2].max()) for run in runs)
    beyond = float(runs[0].polynomials[-2:].max())
    name = "∫ T_k by quadrature of s nodes, k < 2s: largest error"
    return [
        Check("polynomials", name, below, "=", 0.0, 1e-9),
        Check("beyond", "∫ T_k of k = 2s and 2s + 1: error, fewest steps", beyond, "≥", 1e-6),
    ]


def _smoothed(runs: list[Run]) -> list[Check]:
    over = max(run.wide / (smoothing_bound(run.steps, WIDE) + ROUNDING) for run in runs)
    name = f"density smoothed by {NARROW:g}: error of most steps / fewest"
    return [
        Check("smoothed", f"density smoothed by {WIDE:g}: error over its bound, largest", over, "≤", 1.0),
        Check("narrow", name, runs[-1].narrow / runs[0].narrow, "≤", 0.01),
    ]


def _distribution(runs: list[Run], values: Array) -> list[Check]:
    num_held, last = sum(holds(run.found, values) for run in runs), runs[-1]
    fall = last.distance / runs[0].distance
    name = f"of {len(runs)} bands, those that hold the exact distribution"
    return [
        Check("band", name, num_held, "=", len(runs)),
        Check("distance", "sup |F̂ − F| off zero, most steps", last.distance, "≤", last.found.spread),
        Check("fall", "sup |F̂ − F| off zero, most steps / fewest", fall, "≤", 0.5),
    ]


def _errors_panel(runs: list[Run]) -> Panel:
    steps = np.array([run.steps for run in runs], float)
    series = [
        Series(f"smoothed by {WIDE:g}, / peak", steps, [run.wide for run in runs], "points"),
        Series("its bound", steps, [smoothing_bound(run.steps, WIDE) for run in runs], "dashes"),
        Series(f"smoothed by {NARROW:g}, / peak", steps, [run.narrow for run in runs], "points"),
        Series("sup |F̂ − F| off zero", steps, [run.distance for run in runs], "points"),
        Series("mean width of the band", steps, [run.found.width for run in runs], "points"),
    ]
    reading = "What the vectors see is found to rounding; what they cannot see does not fall with steps."
    return Panel("Errors", "Lanczos steps", "error", series, reading, "y")


def _distribution_panel(values: Array, run: SpectralDistribution) -> Panel:
    x = np.geomspace(NEAR_ZERO, 1, 300) * values[-1]
    low, high = run.at(x)
    floor = 0.5 / len(values)
    series = [
        Series("exact", x, np.maximum(1 - share_below(values, x), floor)),
        Series("quadrature", x, np.maximum(1 - sums_below(run.quadrature, x), floor)),
        Series("band, upper", x, np.maximum(1 - low, floor), "dashes"),
        Series("band, lower", x, np.maximum(1 - high, floor), "dashes"),
    ]
    reading = "The exact share lies in the band; a lower side of zero is drawn at half an eigenvalue."
    return Panel("Share of eigenvalues above x", "x", "1 − F(x)", series, reading, "xy")
