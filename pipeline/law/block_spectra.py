"""Spectra of the Hessian's blocks of layers: how alike they are in a convolutional net, and in a transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import xlogy
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from pipeline.data import Digits
from pipeline.law.nets import matrix
from pipeline.model import ResNet, Transformer
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_counts

CROSS_ENTROPY = nn.CrossEntropyLoss()
HIDDEN = "block*.conv?.weight", "blocks.*"  # layers inside of residual and transformer blocks
PATCH_SIZE = 4
LAYERS_OF_BLOCK = 6  # query, key, value, output, and two of the perceptron
TINY = 1e-300  # where both densities are zero
WIDTHS = np.geomspace(3e-3, 1, 8)  # of the Gaussians of smoothed densities; 3e-3 is that of the authors' code

Spectra = Mapping[str, Array]
Distance = Callable[[Array, Array], float]


@dataclass(frozen=True)
class BlockSpectra:
    """Mean distance of two layers' spectra, in a residual net and a vision transformer at random weights.

    num_samples: digits. num_channels: of the residual blocks. num_blocks, width, hidden_size: of the transformer.
    """

    TITLE: ClassVar[str] = "Spectra of layers: alike in a conv net, unlike in a transformer"
    SOURCE: ClassVar[str] = "Zhang et al. 2024, arXiv:2402.16788"

    seed: int
    num_samples: int = 64
    num_channels: Sequence[int] = (8, 8)
    num_blocks: int = 2
    width: int = 12
    hidden_size: int = 24

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_blocks", "width", "hidden_size"):
            check_count(f"law.{name}", getattr(self, name))
        check_counts("law.num_channels", self.num_channels)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: the Hessian's block of each weight matrix of two nets, and all its eigenvalues."""
        hidden = [inner(self._spectra(kind)) for kind in ("resnet", "transformer")]
        found = {
            key: [mean_distance(each, distance) for each in hidden] for key, distance in DISTANCES.items()
        }
        smoothed = [[jensen_shannon(each, width) for width in WIDTHS] for each in hidden]
        texts = {key: " and ".join(f"{value:.2f}" for value in pair) for key, pair in found.items()}
        sentence = (
            f"Two hidden layers of conv net and transformer are {texts['wasserstein']} mean eigenvalues apart; with "
            f"spectra normalized each by itself, {texts['wasserstein_normalized']}: it is scales that tell both apart."
        )
        checks = [*self._checks(hidden, found), _smoothing_check(smoothed)]
        return Outcome(sentence, checks, [*_panels(hidden), _smoothing_panel(smoothed)])

    def _checks(self, hidden: list[Spectra], found: Mapping[str, list[float]]) -> list[Check]:
        scales = [_range([_scale(values) for values in each.values()]) for each in hidden]
        blocks = [f"blocks.{place}.attention." for place in range(self.num_blocks)]
        ratio = min(
            _scale(hidden[1][f"{block}value"]) / _scale(hidden[1][block + key])
            for block in blocks
            for key in ("query", "key")
        )
        name = "largest / smallest mean |λ|, transformer / conv net"
        return [
            *(_order(key, name, found[key]) for key, name in NAMES.items()),
            Check("scales", name, scales[1] / scales[0], "≥", 1.0),
            Check("attention", "mean |λ| of value / of query or key, least", ratio, "≥", 1.0),
        ]

    def _spectra(self, kind: str) -> Spectra:
        torch.manual_seed(self.seed)
        samples = Digits(num_samples=self.num_samples).load()
        images: Any = samples.train.inputs
        inputs = (images.double() - images.double().mean()) / images.double().std()
        net: nn.Module = (
            ResNet(samples.input_shape, 10, self.num_channels)
            if kind == "resnet"
            else Transformer(
                samples.input_shape, 10, PATCH_SIZE, self.width, self.num_blocks, hidden_size=self.hidden_size
            )
        )
        return layer_spectra(net.double(), inputs, samples.train.targets)


def layer_spectra(net: nn.Module, inputs: Tensor, targets: Tensor) -> Spectra:
    """Eigenvalues of the Hessian's block of each weight matrix and kernel, ascending; query, key and value apart."""
    found: dict[str, Array] = {}
    for name, weight in net.named_parameters():
        if weight.ndim < 2 or name == "positions":
            continue
        block = matrix(net, CROSS_ENTROPY, inputs, targets, parameters=name).numpy()
        if not name.endswith("qkv.weight"):
            found[name] = np.linalg.eigvalsh(block)
            continue
        size = len(block) // 3
        for place, part in enumerate(("query", "key", "value")):
            rows = slice(place * size, (place + 1) * size)
            found[name.replace("qkv.weight", part)] = np.linalg.eigvalsh(block[rows, rows])
    return found


def inner(spectra: Spectra) -> Spectra:
    """Those of layers inside of blocks: without the first layer, the last one, and shortcuts."""
    return {name: values for name, values in spectra.items() if any(fnmatch(name, each) for each in HIDDEN)}


def mean_distance(spectra: Spectra, distance: Distance) -> float:
    """The mean over all pairs of layers."""
    return float(np.mean([distance(a, b) for a, b in combinations(spectra.values(), 2)]))


def wasserstein(first: Array, second: Array) -> float:
    """∫ |F − G| dλ over the geometric mean of both mean |λ|: the same in all units of the loss."""
    unit = np.sqrt(_scale(first) * _scale(second))
    return float(wasserstein_distance(first, second) / unit)


def kolmogorov(first: Array, second: Array) -> float:
    """Sup |F − G|."""
    x = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(each), x, side="right") / len(each) for each in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def jensen_shannon(spectra: Spectra, width: float) -> float:
    """Mean Jensen-Shannon divergence of two layers' densities, smoothed by a Gaussian of this width; bits, 0 to 1."""
    ends = np.concatenate(list(spectra.values()))
    x = np.arange(ends.min() - 4 * width, ends.max() + 4 * width, width / 2)[:, None]
    kernels = {name: np.exp(-(((x - values) / width) ** 2) / 2) for name, values in spectra.items()}
    densities = {name: each.sum(axis=1) / each.sum() for name, each in kernels.items()}

    def divergence(p: Array, q: Array) -> float:
        total = p + q + TINY
        entropy: float = (xlogy(p, p / total) + xlogy(q, q / total)).sum() / (2 * np.log(2))
        return 1 + entropy

    return mean_distance(densities, divergence)


def _scale(values: Array) -> float:
    return float(np.abs(values).mean())


def _normalized(distance: Distance) -> Distance:
    """The same of spectra over their mean |λ|: of their shape alone."""
    return lambda first, second: distance(first / _scale(first), second / _scale(second))


DISTANCES: dict[str, Distance] = {
    "wasserstein": wasserstein,
    "wasserstein_normalized": _normalized(wasserstein),
    "kolmogorov": kolmogorov,
    "kolmogorov_normalized": _normalized(kolmogorov),
}
NAMES = {
    "wasserstein": "Wasserstein distance",
    "kolmogorov": "Kolmogorov distance",
}  # of those that are checked


def _order(key: str, name: str, pair: list[float]) -> Check:
    return Check(key, f"{name}, transformer / conv net", pair[1] / pair[0], "≥", 1.0)


def _smoothing_check(smoothed: list[list[float]]) -> Check:
    """That the width decides: how unlike one net is beside the other, by the narrowest and by the widest Gaussian."""
    ratios = np.array(smoothed[1]) / np.array(smoothed[0])
    name = "Jensen-Shannon, transformer / conv net: narrowest width over widest"
    return Check("smoothing", name, float(ratios[0] / ratios[-1]), "≥", 2.0)


def _range(values: Sequence[float]) -> float:
    return max(values) / min(values)


def _panels(hidden: list[Spectra]) -> list[Panel]:
    """The sizes of eigenvalues of all hidden layers of the conv net, and of the last block of the transformer."""
    panels = []
    for title, spectra in zip(("Conv net", "Transformer, last block"), hidden, strict=True):
        series = []
        for name, values in list(spectra.items())[-LAYERS_OF_BLOCK:]:
            sizes = np.sort(np.abs(values))[::-1]
            sizes = sizes[: max(1, len(sizes) // 2)]  # the smaller half is near rounding in some layers
            places = np.arange(1, len(sizes) + 1) / len(values)
            parts = [part for part in name.split(".") if part not in ("blocks", "attention", "weight")]
            series.append(Series(" ".join(parts[-2:] if title == "Conv net" else parts[-1:]), places, sizes))
        reading = "One line a layer: |λ|, the larger half, at their share of all."
        panels.append(Panel(title, "share of eigenvalues", "|λ|", series, reading, "y"))
    return panels


def _smoothing_panel(smoothed: list[list[float]]) -> Panel:
    series = [
        Series(name, WIDTHS, values)
        for name, values in zip(("conv net", "transformer"), smoothed, strict=True)
    ]
    reading = "A distance of smoothed densities is what the width makes of it."
    return Panel(
        "Jensen-Shannon divergence", "width of the Gaussian", "mean over pairs", series, reading, "x"
    )
