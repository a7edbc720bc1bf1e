"""What symmetries of a loss say of its Hessian: rescaled ReLU units, shifted softmax outputs, scale before a norm."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.law.nets import agree, gradient, matrix, normal, perceptron, spans
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.system import RunFolder
from pipeline.validation import check_count

CRITERION = nn.CrossEntropyLoss()
DIFFERS = 1e-3  # relative: what is no rounding
ROUNDING = 1e-9  # of matrices at weights of several sizes


@dataclass(frozen=True)
class Symmetries:
    """Identities of H and the gradient g along the directions in which the loss cannot change.

    num_samples, dimension, hidden_size, num_classes: of Gaussian samples with random labels, and of nets with one or
    two hidden layers. scales: by which the units of the ReLU net are rescaled, from 1 / scale to scale.
    """

    TITLE: ClassVar[str] = "Symmetries of the loss: what they say of Hessian and gradient"
    SOURCE: ClassVar[str] = "Kunin et al. 2021, arXiv:2012.04728; Dinh et al. 2017, arXiv:1703.04933"

    seed: int
    num_samples: int = 24
    dimension: int = 5
    hidden_size: int = 7
    num_classes: int = 4
    scale: int = 4

    def __post_init__(self) -> None:
        for name in ("num_samples", "dimension", "hidden_size", "num_classes", "scale"):
            check_count(f"law.{name}", getattr(self, name), minimum=2)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: the Hessians of six small nets."""
        torch.manual_seed(self.seed)
        samples = (
            normal(self.num_samples, self.dimension),
            torch.randint(self.num_classes, (self.num_samples,)),
        )
        widths = [self.dimension, self.hidden_size, self.num_classes]
        relu, tanh = perceptron(widths, nn.ReLU()), perceptron(widths, nn.Tanh())
        factors = self.scale ** (2 * torch.rand(self.hidden_size, dtype=torch.float64) - 1)
        before, after = Point.of(relu, *samples), Point.of(rescaled(relu, factors), *samples)
        normed = nn.Sequential(
            nn.Linear(self.dimension, self.hidden_size),
            nn.LayerNorm(self.hidden_size, eps=0.0),
            nn.ReLU(),
            nn.Linear(self.hidden_size, self.num_classes),
        ).double()
        checks = [
            *_rescaling(before, after, factors),
            *_units(before, Point.of(tanh, *samples)),
            *_euler(
                perceptron(
                    [self.dimension, *[self.hidden_size] * 2, self.num_classes], nn.ReLU(), bias=False
                ),
                *samples,
            ),
            *_shift(before),
            *_scale(normed, *samples),
        ]
        sentence = (
            "Along each symmetry the curvature is what the gradient says: H Dθ = −Dg for rescaled units, H Eθ = −Eg "
            "before a norm, and Hv = 0 for shifted outputs, the only ones that are null directions everywhere."
        )
        return Outcome(sentence, checks, [_panel(before, after)])


@dataclass(frozen=True)
class Point:
    """A net at its weights θ, (P,), with the gradient g and the Hessian H of the mean cross-entropy."""

    net: nn.Sequential
    theta: Tensor
    g: Tensor
    H: Tensor

    @staticmethod
    def of(net: nn.Sequential, inputs: Tensor, labels: Tensor) -> Point:
        theta = torch.cat([each.detach().flatten() for each in net.parameters()])
        return Point(
            net, theta, gradient(net, CRITERION, inputs, labels), matrix(net, CRITERION, inputs, labels)
        )

    @property
    def size(self) -> float:
        """The largest entry of H."""
        return float(self.H.abs().max())


def rescaled(net: nn.Sequential, factors: Tensor) -> nn.Sequential:
    """The net whose hidden units have incoming weights and biases times the factors, outgoing ones divided by them."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for each, scale in zip(other.parameters(), scales(net, factors), strict=True):
            each.mul_(scale)
    return other


def scales(net: nn.Sequential, factors: Tensor) -> list[Tensor]:
    """What each parameter of a net with one hidden layer is multiplied by: the diagonal of A, θ ↦ Aθ."""
    incoming, bias, outgoing, last = net.parameters()
    return [
        factors[:, None].expand_as(incoming),
        factors.expand_as(bias),
        (1 / factors).expand_as(outgoing),
        torch.ones_like(last),
    ]


def generator(net: nn.Sequential, unit: int) -> Tensor:
    """The diagonal of D, (P,): 1 for weights into a hidden unit and its bias, −1 for those out of it, 0 elsewhere."""
    incoming, bias, outgoing, last = (torch.zeros_like(each) for each in net.parameters())
    incoming[unit], bias[unit], outgoing[:, unit] = 1.0, 1.0, -1.0
    return torch.cat([each.flatten() for each in (incoming, bias, outgoing, last)]).detach()


def _rescaling(before: Point, after: Point, factors: Tensor) -> list[Check]:
    """A g(Aθ) = g(θ) and A H(Aθ) A = H(θ); the largest eigenvalue is another one."""
    A = torch.cat([each.detach().flatten() for each in scales(before.net, factors)])
    back = A[:, None] * after.H * A
    ratio = float(torch.linalg.eigvalsh(after.H)[-1] / torch.linalg.eigvalsh(before.H)[-1])
    return [
        agree(
            "rescaled_gradient",
            "A g(Aθ) and g(θ)",
            A * after.g,
            before.g,
            float(before.g.abs().max()),
            ROUNDING,
        ),
        agree("rescaled_hessian", "A H(Aθ) A and H(θ)", back, before.H, before.size, ROUNDING),
        Check(
            "rescaled_sharpness",
            "λmax of H(Aθ) over that of H(θ), of one function",
            abs(ratio - 1),
            "≥",
            DIFFERS,
        ),
    ]


def _units(relu: Point, tanh: Point) -> list[Check]:
    """gᵀDθ = 0 and H Dθ = −Dg for each hidden unit of a ReLU net; not of a tanh net."""
    D = torch.stack([generator(relu.net, unit) for unit in range(len(list(relu.net.parameters())[1]))])
    slopes, curved = (D * relu.theta) @ relu.g, (D * relu.theta) @ relu.H
    broken = (D * tanh.theta) @ tanh.H + D * tanh.g
    null = float((D * relu.g).abs().max()) / float(relu.g.abs().max())
    return [
        agree(
            "unit_slopes",
            "gᵀDθ and 0, each unit",
            slopes,
            torch.zeros_like(slopes),
            float(relu.g.abs().max()),
            ROUNDING,
        ),
        agree("unit_curvature", "H Dθ and −Dg, each unit", curved, -D * relu.g, relu.size, ROUNDING),
        Check("unit_not_null", "‖Dg‖ of a unit: Dθ is no null direction", null, "≥", DIFFERS),
        Check(
            "unit_tanh", "tanh: H Dθ + Dg, relative to H", float(broken.abs().max()) / tanh.size, "≥", DIFFERS
        ),
    ]


def _euler(net: nn.Sequential, inputs: Tensor, labels: Tensor) -> list[Check]:
    """Hθ = (L − 1) g + L JᵀΛf for L layers of a ReLU net without biases, whose outputs are homogeneous of degree L."""
    point, outputs = Point.of(net, inputs, labels), net(inputs)
    f, L = outputs.detach(), sum(isinstance(each, nn.Linear) for each in net)
    p = f.softmax(1)
    curved = (p * f - p * (p * f).sum(1, keepdim=True)) / len(f)  # Λf of each sample
    parts = torch.autograd.grad(outputs, tuple(net.parameters()), curved)
    right = (L - 1) * point.g + L * torch.cat([part.flatten() for part in parts])
    return [agree("euler", "Hθ and (L − 1) g + L JᵀΛf", point.H @ point.theta, right, point.size, ROUNDING)]


def _shift(point: Point) -> list[Check]:
    """Hv = 0 and gᵀv = 0 for every v that adds one vector to the weights of all outputs, or a number to all biases."""
    last = list(spans(point.net).values())[-1]
    C, h = list(point.net.parameters())[-2].shape
    block = point.H[last, last]
    ones = torch.ones(C, 1, dtype=torch.float64)
    shifts = torch.block_diag(torch.kron(ones, torch.eye(h, dtype=torch.float64)), ones)  # (C h + C, h + 1)
    columns, slopes = point.H[:, last] @ shifts, point.g[last] @ shifts
    values = torch.linalg.eigvalsh(block)
    num_null = float((values < 1e-12 * values[-1]).sum())
    return [
        agree(
            "shift_null",
            "H v and 0 for shifted outputs",
            columns,
            torch.zeros_like(columns),
            point.size,
            ROUNDING,
        ),
        agree(
            "shift_slope",
            "gᵀv and 0 for shifted outputs",
            slopes,
            torch.zeros_like(slopes),
            float(point.g.abs().max()),
            ROUNDING,
        ),
        Check(
            "shift_count",
            "null directions of the last layer, at least its inputs + 1",
            num_null,
            "≥",
            float(h + 1),
        ),
    ]


def _scale(net: nn.Sequential, inputs: Tensor, labels: Tensor) -> list[Check]:
    """gᵀEθ = 0 and H Eθ = −Eg, with E the projection to the weights before the norm; H(αθ) = H / α² in their block."""
    point, first = Point.of(net, inputs, labels), next(iter(spans(net).values()))
    E = torch.zeros_like(point.theta)
    E[first] = 1.0
    double = copy.deepcopy(net)
    with torch.no_grad():
        for each in double[0].parameters():
            each.mul_(2.0)
    scaled = Point.of(double, inputs, labels).H[first, first]
    slope = (E * point.theta) @ point.g
    return [
        agree(
            "norm_slope",
            "gᵀEθ and 0 before a norm",
            slope,
            torch.zeros(()),
            float(point.g.abs().max()),
            ROUNDING,
        ),
        agree(
            "norm_curvature",
            "H Eθ and −Eg before a norm",
            point.H @ (E * point.theta),
            -E * point.g,
            point.size,
            ROUNDING,
        ),
        agree(
            "norm_scale",
            "4 H(2θ) and H(θ), block before a norm",
            4 * scaled,
            point.H[first, first],
            point.size,
            ROUNDING,
        ),
    ]


def _panel(before: Point, after: Point) -> Panel:
    values = [torch.linalg.eigvalsh(point.H).flip(0) for point in (before, after)]
    positive = [each[each > 1e-12 * each[0]].numpy() for each in values]
    return Panel(
        "Eigenvalues of H at θ and at Aθ, one function",
        "rank",
        "eigenvalue",
        [
            Series(name, np.arange(1, len(each) + 1), each, "points")
            for name, each in zip(("θ", "Aθ: rescaled hidden units"), positive, strict=True)
        ],
        "Positive eigenvalues of one function at two settings of its weights: sharpness is not of the function.",
        "y",
    )
