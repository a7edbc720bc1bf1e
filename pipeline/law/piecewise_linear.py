"""Where Hessian and Gauss-Newton matrix agree: blocks of piecewise linear nets, no residual; and the Fisher matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.law.nets import ROUNDING, agree, half_squared_error, matrix, normal, perceptron, spans
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.system import RunFolder
from pipeline.validation import check_count

CRITERION = nn.CrossEntropyLoss()
DIFFERS = 1e-3  # relative: what is no rounding


@dataclass(frozen=True)
class PiecewiseLinear:
    """Diagonal blocks of H and GGN for ReLU, leaky ReLU and max-pooling nets, and for tanh, where they differ.

    num_samples, num_classes: of random images of size × size, with random labels. hidden_size: of the dense nets.
    """

    TITLE: ClassVar[str] = "Blocks of a layer: Hessian and Gauss-Newton matrix of piecewise linear nets"
    SOURCE: ClassVar[str] = "Botev, Ritter and Barber 2017, arXiv:1706.03662; Martens 2020, arXiv:1412.1193"

    seed: int
    num_samples: int = 16
    size: int = 6
    hidden_size: int = 10
    num_classes: int = 4

    def __post_init__(self) -> None:
        check_count("law.num_samples", self.num_samples)
        for name in ("size", "hidden_size", "num_classes"):
            check_count(f"law.{name}", getattr(self, name), minimum=4 if name == "size" else 2)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: two matrices for each of five nets, and N·C gradients."""
        torch.manual_seed(self.seed)
        images, labels = (
            normal(self.num_samples, 1, self.size, self.size),
            torch.randint(self.num_classes, (self.num_samples,)),
        )
        pairs = {name: Pair.of(net, images, labels) for name, net in self._nets().items()}
        checks = [check for name, pair in pairs.items() for check in _blocks(name, pair)]
        net, G = pairs["ReLU"].net, pairs["ReLU"].G
        scale, targets = float(G.abs().max()), net(images).detach()
        exact, gauss = (
            matrix(net, half_squared_error, images, targets, which) for which in ("hessian", "ggn")
        )
        summed = fisher(net, images)
        checks += [
            agree(
                "zero_residual",
                "H and GGN where all residuals are zero",
                exact,
                gauss,
                float(gauss.abs().max()),
            ),
            agree("fisher", "GGN and Fisher matrix summed over all labels", G, summed, scale),
            agree(
                "fisher_pipeline",
                "matrix=fisher and that sum",
                matrix(net, CRITERION, images, labels, "fisher"),
                summed,
                scale,
            ),
        ]
        largest = max(
            check.measured for check in checks if check.key.endswith("_blocks") and check.relation == "="
        )
        sentence = (
            f"Diagonal blocks of H and GGN agree to {largest:.0e} for nets of piecewise linear functions, "
            "blocks between layers do not, and with tanh neither do."
        )
        return Outcome(sentence, checks, [_panel(pairs)])

    def _nets(self) -> dict[str, nn.Sequential]:
        widths = [self.size**2, self.hidden_size, self.hidden_size, self.num_classes]
        pooled = (self.size - 2) // 2
        convolutional = nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3 * pooled**2, self.num_classes),
        ).double()
        dense = {"ReLU": nn.ReLU(), "leaky ReLU": nn.LeakyReLU(0.2), "tanh": nn.Tanh()}
        nets = {name: nn.Sequential(nn.Flatten(), *perceptron(widths, each)) for name, each in dense.items()}
        return {
            "ReLU": nets["ReLU"],
            "leaky ReLU": nets["leaky ReLU"],
            "convolution": convolutional,
            "tanh": nets["tanh"],
        }


@dataclass(frozen=True)
class Pair:
    """A net, its Hessian and its Gauss-Newton matrix, for the mean cross-entropy of the same samples."""

    net: nn.Sequential
    H: Tensor
    G: Tensor

    @staticmethod
    def of(net: nn.Sequential, inputs: Tensor, labels: Tensor) -> Pair:
        H, G = (matrix(net, CRITERION, inputs, labels, which) for which in ("hessian", "ggn"))
        return Pair(net, H, G)


def fisher(net: nn.Module, inputs: Tensor) -> Tensor:
    """(1/N) Σ_n Σ_c p_nc g_nc g_ncᵀ, where g_nc is the gradient of −log p(c | x_n), each by a plain backward pass."""
    total: Tensor | float = 0.0
    for sample in inputs.split(1):
        log_p = net(sample).log_softmax(1)[0]
        for each in log_p:
            parts = torch.autograd.grad(each, tuple(net.parameters()), retain_graph=True)
            g = torch.cat([part.flatten() for part in parts])
            total = total + float(each.detach().exp()) * torch.outer(g, g)
    assert isinstance(total, Tensor)
    return total / len(inputs)


def _blocks(name: str, pair: Pair) -> list[Check]:
    """Blocks, traces and diagonals agree, and blocks between layers do not; with tanh none of it does."""
    H, G = pair.H, pair.G
    key, scale = name.lower().replace(" ", "_"), float(G.abs().max())
    inside = torch.zeros_like(H, dtype=torch.bool)
    for span in spans(pair.net).values():
        inside[span, span] = True
    block = float((H - G)[inside].abs().max()) / scale
    if name == "tanh":
        trace = abs(float(H.trace() - G.trace())) / float(G.trace())
        return [
            Check(
                f"{key}_blocks", "tanh: blocks of a layer, largest relative difference", block, "≥", DIFFERS
            ),
            Check(f"{key}_trace", "tanh: traces, relative difference", trace, "≥", DIFFERS),
        ]
    between = float((H - G)[~inside].abs().max()) / scale
    return [
        Check(
            f"{key}_blocks",
            f"{name}: blocks of a layer, largest relative difference",
            block,
            "=",
            0.0,
            ROUNDING,
        ),
        Check(
            f"{key}_between",
            f"{name}: blocks between layers, largest relative difference",
            between,
            "≥",
            DIFFERS,
        ),
        agree(f"{key}_diagonal", f"{name}: diagonals", H.diagonal(), G.diagonal(), scale),
        agree(f"{key}_trace", f"{name}: traces", H.trace(), G.trace(), float(G.trace())),
    ]


def _panel(pairs: dict[str, Pair]) -> Panel:
    """Diagonal entries of the ReLU and the tanh net, H against GGN."""
    drawn = {name: (pairs[name].G.diagonal(), pairs[name].H.diagonal()) for name in ("tanh", "ReLU")}
    top = max(float(G.max()) for G, _ in drawn.values())
    return Panel(
        "Diagonal entries of both matrices",
        "GGN",
        "Hessian",
        [
            *(Series(name, G.numpy(), H.numpy(), "points") for name, (G, H) in drawn.items()),
            Series("equal", [0.0, top], [0.0, top], "dashes"),
        ],
        "A point is a weight: those of the ReLU net lie on the line of equal entries, those of the tanh net do not.",
    )
