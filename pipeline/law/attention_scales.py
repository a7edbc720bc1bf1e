"""How Hessian blocks of self-attention grow with the scale σ of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import hessian
from pipeline.criterion import SquaredError
from pipeline.law.nets import exponent, normal
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count

SMALL = np.logspace(-2, -1, 5)  # σ where attention is nearly uniform: here the law holds
LARGE = np.logspace(-0.75, 1, 8)  # beyond it, for the figure
DOUBLED = np.array([0.5, 1.0, 2.0])  # σ for linear attention, which is homogeneous
EXPONENTS = {"value_outer": 2.0, "query_outer": 6.0, "query_functional": 5.0}  # of softmax attention
SLOPE_TOLERANCE = 0.1
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class SelfAttention(nn.Module):
    """Layers X ← A X W_V with A = softmax(S) or A = S, S = X W_Q W_Kᵀ Xᵀ / sqrt(d_k), without skip connections.

    Samples are (tokens, width); entries of the weights are N(0, 1/width).
    """

    def __init__(self, width: int, head_width: int, num_layers: int, is_linear: bool) -> None:
        super().__init__()
        self.is_linear = is_linear
        widths = {"query": head_width, "key": head_width, "value": width}
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, size, bias=False) for name, size in widths.items()})
            for _ in range(num_layers)
        )
        self.double()
        for weight in self.parameters():
            nn.init.normal_(weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            query, key, value = (layer[name](tokens) for name in ("query", "key", "value"))  # type: ignore[index]
            scores = query @ key.mT / key.shape[-1] ** 0.5
            tokens = (scores if self.is_linear else scores.softmax(-1)) @ value
        return tokens


class Blocks(NamedTuple):
    """Matrices (P_l, P_l) of the layer's weights: outer is the Gauss-Newton part of a block, functional the rest."""

    value_outer: Tensor
    value_functional: Tensor
    query_outer: Tensor
    query_functional: Tensor


@dataclass(frozen=True)
class AttentionScales:
    """‖block‖_F ∝ σ^k for embeddings σ X: k of softmax attention as σ → 0, and of linear attention at any σ.

    num_samples, num_tokens, width: of Gaussian embeddings and targets. head_width: d_k. num_layers: the deepest net of
    linear attention.
    """

    TITLE: ClassVar[str] = "Growth of attention's Hessian blocks with the scale of the embeddings"
    SOURCE: ClassVar[str] = "Ormaniec, Dangel and Singh 2025, arXiv:2410.10986"

    seed: int
    num_samples: int = 8
    num_tokens: int = 6
    width: int = 5
    head_width: int = 4
    num_layers: int = 3

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_tokens", "width", "head_width", "num_layers"):
            check_count(f"law.{name}", getattr(self, name), minimum=2 if name == "num_tokens" else 1)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: some 80 matrices of at most width² weights."""
        torch.manual_seed(self.seed)
        shape = (self.num_samples, self.num_tokens, self.width)
        inputs, targets = normal(2, *shape)
        net = SelfAttention(self.width, self.head_width, 1, is_linear=False)
        scales = np.concatenate([SMALL, LARGE])
        blocks = [blocks_of(net, scale * inputs, targets) for scale in scales]
        norms = {key: np.array([float(getattr(each, key).norm()) for each in blocks]) for key in EXPONENTS}
        limits = leading_blocks(net, SMALL[0] * inputs, targets)
        functional = max(float(each.value_functional.norm() / each.value_outer.norm()) for each in blocks)
        checks = [
            *(_softmax_slope(key, norms[key]) for key in EXPONENTS),
            Check(
                "value_functional", "‖H − G‖ / ‖G‖ of the value block, largest", functional, "=", 0.0, 1e-12
            ),
            *(_limit(key, getattr(blocks[0], key), getattr(limits, key)) for key in EXPONENTS),
        ]
        linear = [self._linear(num_layers, inputs, targets) for num_layers in range(1, self.num_layers + 1)]
        checks += [check for check, _ in linear]
        slopes = ", ".join(f"{check.measured:.2f}" for check in checks[:3])
        sentence = (
            f"Norms of the value outer, query outer and query functional block grow as σ to the {slopes}; those of "
            f"linear attention with one to {self.num_layers} layers as σ to the "
            f"{', '.join(f'{check.measured:.4g}' for check, _ in linear)}."
        )
        return Outcome(sentence, checks, [_panel(scales, norms), _linear_panel([each for _, each in linear])])

    def _linear(self, num_layers: int, inputs: Tensor, targets: Tensor) -> tuple[Check, Array]:
        """The slope that differs most from 2 · 3^D among all query and value blocks, and norms of the last value."""
        net = SelfAttention(self.width, self.head_width, num_layers, is_linear=True)
        names = [
            f"layers.{layer}.{kind}.weight" for layer in range(num_layers) for kind in ("query", "value")
        ]
        norms = np.array(
            [
                [float(_matrix(net, scale * inputs, targets, "ggn", name).norm()) for scale in DOUBLED]
                for name in names
            ]
        )
        expected = 2.0 * 3**num_layers
        slopes = np.array([exponent(DOUBLED, each) for each in norms])
        farthest = float(slopes[np.abs(slopes - expected).argmax()])
        name = f"exponent of the outer blocks, linear attention, {num_layers} layer{'s' * (num_layers > 1)}"
        return Check(f"linear_outer_{num_layers}", name, farthest, "=", expected, 1e-6), norms[-1]


def blocks_of(net: SelfAttention, inputs: Tensor, targets: Tensor) -> Blocks:
    """The blocks of the first layer, of ½ ‖F − Y‖² averaged over samples."""
    parts = []
    for kind in ("value", "query"):
        name = f"layers.0.{kind}.weight"
        H, G = (_matrix(net, inputs, targets, matrix, name) for matrix in ("hessian", "ggn"))
        parts += [G, H - G]
    return Blocks(*parts)


def _matrix(net: nn.Module, inputs: Tensor, targets: Tensor, matrix: str, name: str) -> Tensor:
    return hessian(net, SquaredError(), inputs, targets, matrix=matrix, parameters=name)


def leading_blocks(net: SelfAttention, inputs: Tensor, targets: Tensor) -> Blocks:
    """Leading terms of the blocks of one softmax layer as σ → 0, where attention is uniform.

    With x̄, C and the third central moment of the tokens of a sample, T tokens, B = W_Kᵀ C W_V:
    F_i = x̄ W_V + O(σ³), ∂F_i/∂W_Q = x_i ⊗ B / sqrt(d_k), ∂²F_i/∂W_Q² = x_i x_iᵀ ⊗ E[(W_Kᵀx)(W_Kᵀx)ᵀ (W_Vᵀx)] / d_k
    of centered x, and the residual is −Y. Rows and columns are in the order of `nn.Linear.weight`, (out, in).
    """
    layer = net.layers[0]
    key, value = (layer[name].weight.detach() for name in ("key", "value"))  # type: ignore[index]  # (out, in)
    N, T, d = inputs.shape
    mean = inputs.mean(1, keepdim=True)  # (N, 1, d)
    keys, values = (inputs - mean) @ key.T, (inputs - mean) @ value.T  # (N, T, d_k), (N, T, d)
    B = keys.mT @ values / T  # (N, d_k, d)
    curvature = torch.einsum("ntr,nts,ntc->nrsc", keys, keys, values) / T
    scale = N * key.shape[0]
    outer = torch.einsum("nip,niq,nrc,nsc->rpsq", inputs, inputs, B, B) / scale
    functional = -torch.einsum("nip,niq,nic,nrsc->rpsq", inputs, inputs, targets, curvature) / scale
    second = T * torch.einsum("nip,niq->pq", mean, mean) / N
    value_outer = torch.kron(torch.eye(d, dtype=inputs.dtype), second)
    size = key.shape[0] * d
    zero = torch.zeros_like(value_outer)
    return Blocks(value_outer, zero, outer.reshape(size, size), functional.reshape(size, size))


def _softmax_slope(key: str, norms: Array) -> Check:
    part, kind = key.split("_")
    measured = exponent(SMALL, norms[: len(SMALL)])
    name = f"exponent of the {part} {kind} block, σ from {SMALL[0]:g} to {SMALL[-1]:g}"
    return Check(key, name, measured, "=", EXPONENTS[key], SLOPE_TOLERANCE)


def _limit(key: str, block: Tensor, limit: Tensor) -> Check:
    part, kind = key.split("_")
    error = float((block - limit).norm() / limit.norm())
    return Check(f"{key}_limit", f"{part} {kind} block, distance to its leading term", error, "=", 0.0, 0.05)


def _panel(scales: Array, norms: dict[str, Array]) -> Panel:
    series = []
    for key, power in EXPONENTS.items():
        name = key.replace("_", " ")
        series += [
            Series(name, scales, norms[key], "points"),
            Series(_power(power), scales, norms[key][0] * (scales / scales[0]) ** power, "dashes"),
        ]
    reading = "Below σ = 0.1 the norms follow the powers; above it attention is no longer uniform."
    return Panel(
        "Softmax attention, one layer", "scale σ of the embeddings", "‖block‖_F", series, reading, "xy"
    )


def _power(power: float) -> str:
    return "∝ σ" + f"{power:g}".translate(SUPERSCRIPT)


def _linear_panel(norms: list[Array]) -> Panel:
    series = []
    for num_layers, each in enumerate(norms, start=1):
        power = 2 * 3**num_layers
        series += [
            Series(f"{num_layers} layer{'s' * (num_layers > 1)}", DOUBLED, each, "points"),
            Series(_power(power), DOUBLED, each[0] * (DOUBLED / DOUBLED[0]) ** power, "dashes"),
        ]
    reading = (
        "Each layer of linear attention cubes the scale: the value outer block grows as σ to the 2 · 3^D."
    )
    return Panel(
        "Linear attention", "scale σ of the embeddings", "‖value outer block‖_F", series, reading, "xy"
    )
