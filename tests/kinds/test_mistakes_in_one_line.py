"""Mistakes and limits that end in one line: what is wrong, the value, the remedy."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kinds.asked import WAYS, assert_refused, assert_right, differences, net
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compute.dense import layer_hessians, sample_hessians
from pipeline.errors import PipelineError

MSE = nn.MSELoss()


def x() -> Tensor:
    return torch.randn(5, 3)


def y() -> Tensor:
    return torch.randn(5, 2)


def several_dtypes() -> nn.Module:
    model = net(3, 4, 2)
    model[2].float()
    return model


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128)), nn.Parameter(torch.randn(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(self.w.dtype) @ self.w).abs().square() + self.b


class ComplexOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.fft.fft(self.a(inputs))


class Quantised(nn.Module):
    """A weight of whole numbers that does not require grad, and one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
        self.a = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.a(inputs * self.whole)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return net(3, 4, 2)


def infinite() -> nn.Module:
    model = net(3, 4, 2)
    model[0].bias.data[0] = torch.inf
    model[2].weight.data[0, 0] = -torch.inf
    return model


MISTAKES: dict[str, tuple[Callable[[], tuple[Any, ...]], dict[str, Any], str]] = {
    "lazy": (
        lambda: (nn.Sequential(nn.LazyLinear(2)), MSE, x(), y()),
        {},
        "made at its first call: call the model once",
    ),
    "lazy inside": (
        lambda: (nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(), nn.Linear(4, 2)), MSE, x(), y()),
        {},
        r"\(1\) has parameters that are made at its first call",
    ),
    "dtype by name": (
        lambda: (net(3, 4, 2), MSE, x(), y()),
        {"dtype": "float64"},
        "dtype='float64': choose torch.float32",
    ),
    "dtype by number": (
        lambda: (net(3, 4, 2), MSE, x(), y()),
        {"dtype": 64},
        "dtype=64: choose torch.float32",
    ),
    "half": (
        lambda: (net(3, 4, 2), MSE, x(), y()),
        {"dtype": torch.float16},
        "dtype=torch.float16: choose torch.float32",
    ),
    "whole": (lambda: (net(3, 4, 2), MSE, x(), y()), {"dtype": torch.int64}, "dtype=torch.int64: choose"),
    "complex dtype": (
        lambda: (net(3, 4, 2), MSE, x(), y()),
        {"dtype": torch.complex128},
        "dtype=torch.complex128: choose",
    ),
    "half weights": (
        lambda: (net(3, 4, 2).half(), MSE, x().half(), y().half()),
        {},
        "weights are torch.float16, which is too",
    ),
    "bfloat16 weights": (
        lambda: (net(3, 4, 2).bfloat16(), MSE, x(), y()),
        {},
        "torch.bfloat16, which is too coarse",
    ),
    "several dtypes": (
        lambda: (several_dtypes(), MSE, x(), y()),
        {},
        "of several dtypes .*choose one for all by dtype=",
    ),
    "complex weights": (lambda: (Complex(), MSE, x(), y()), {}, "complex parameter 'w'.*view_as_real"),
    "complex loss": (
        lambda: (ComplexOut(), lambda f, t: (f - t).square().mean(), x(), y()),
        {},
        "cannot be computed|complex|0-d",
    ),
    "float32 inputs": (
        lambda: (net(3, 4, 2), MSE, x().float(), y()),
        {},
        "cannot be computed on these inputs.*dtype",
    ),
    "wrong width": (
        lambda: (net(3, 4, 2), MSE, torch.randn(5, 4), y()),
        {},
        "cannot be computed on these inputs",
    ),
    "wrong targets": (
        lambda: (net(3, 4, 2), nn.CrossEntropyLoss(), x(), torch.tensor([0, 1, 5, 0, 1])),
        {},
        "cannot be computed on these inputs and targets.*out of bounds",
    ),
    "one target too few": (
        lambda: (net(3, 4, 2), nn.CrossEntropyLoss(), x(), torch.ones(4).long()),
        {},
        "cannot be computed",
    ),
    "targets of another kind": (
        lambda: (net(3, 4, 2), nn.CrossEntropyLoss(), x(), ["a"] * 5),
        {},
        "cannot be computed",
    ),
    "inputs of another kind": (lambda: (net(3, 4, 2), MSE, [[1.0, 2.0, 3.0]], y()), {}, "cannot be computed"),
    "no inputs": (lambda: (net(3, 4, 2), MSE, None, y()), {}, "cannot be computed"),
    "no samples": (
        lambda: (net(3, 4, 2), MSE, torch.zeros(0, 3), torch.zeros(0, 2)),
        {},
        "the loss is nan",
    ),
    "wrong keyword": (lambda: (net(3, 4, 2), MSE, {"image": x()}, y()), {}, "cannot be computed"),
    "no criterion": (lambda: (net(3, 4, 2), None, x(), y()), {}, "cannot be computed"),
    "criterion of one argument": (
        lambda: (net(3, 4, 2), lambda f: f.mean(), x(), y()),
        {},
        "cannot be computed",
    ),
    "loss without a graph": (
        lambda: (net(3, 4, 2), lambda f, t: [f.mean()], x(), y()),
        {},
        "returned list, expected a 0-d tensor",
    ),
    "nothing to train": (lambda: (nn.Tanh(), MSE, x(), x()), {}, "has no parameter that requires grad"),
    "all frozen": (
        lambda: (net(3, 4, 2).requires_grad_(False), MSE, x(), y()),
        {},
        "no parameter that requires grad",
    ),
    "no name": (lambda: (net(3, 4, 2), MSE, x(), y()), {"parameters": []}, "no parameter"),
    "infinite weights": (lambda: (infinite(), MSE, x(), y()), {}, "the loss is (nan|inf)"),
    "on no device": (lambda: (on_meta(), MSE, x(), y()), {}, "cannot be computed|meta"),
    "negative seed": (lambda: (net(3, 4, 2), MSE, x(), y()), {"randomness": -1}, "randomness"),
    "no such device": (
        lambda: (net(3, 4, 2), MSE, x(), y()),
        {"device": "gpu"},
        "device='gpu' is unknown: choose",
    ),
    "no module": (
        lambda: (lambda inputs: inputs, MSE, x(), y()),
        {},
        "of type function, not a torch.nn.Module",
    ),
    "the class": (lambda: (nn.Tanh, MSE, x(), x()), {}, "the class Tanh, not a torch.nn.Module"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("way", ["auto", "khatri_rao", "func"])
def test_a_mistake_is_told_in_one_line(mistake: str, way: str) -> None:
    build, options, match = MISTAKES[mistake]
    line = assert_refused(build(), match, strategy=WAYS[way], **options)
    assert len(line) < 400


@pytest.mark.parametrize(
    "mistake", [name for name, (_, options, _) in MISTAKES.items() if "randomness" not in options]
)
@pytest.mark.parametrize("call", [layer_hessians, sample_hessians])
def test_layers_and_samples_tell_it_too(mistake: str, call: Callable[..., Any]) -> None:
    build, options, _ = MISTAKES[mistake]
    with pytest.raises(PipelineError) as caught:
        call(*build(), **options)
    assert "\n" not in str(caught.value)


def test_what_looks_like_a_mistake_and_is_none() -> None:
    half = net(3, 4, 2).half()
    exact = net(3, 4, 2)
    for one, other in zip(exact.parameters(), half.parameters(), strict=True):
        one.data = other.data.double()
    inputs, targets = x().half(), y().half()
    expected = differences(exact, MSE, inputs.double(), targets.double())
    assert_right("auto", (half, MSE, inputs, targets), expected, dtype=torch.float64)
    assert half[0].weight.dtype == torch.float16
    mixed = several_dtypes()
    exact.load_state_dict({name: value.double() for name, value in mixed.state_dict().items()})
    inputs, targets = x(), y()
    expected = differences(exact, MSE, inputs, targets)
    assert_right("auto", (mixed, MSE, inputs, targets), expected, dtype=torch.float64)
    whole = Quantised()
    assert_right("auto", (whole, MSE, inputs, targets), differences(whole, MSE, inputs, targets))


def test_complex_numbers_inside_are_none() -> None:
    """Real weights, complex numbers between them and a real loss."""
    problem = (ComplexOut(), lambda f, t: ((f.abs() ** 2).sum(-1) - t[:, 0]).square().mean(), x(), y())
    expected = differences(*problem)
    for way in WAYS:
        assert_right(way, problem, expected, may_refuse=("func", "khatri_rao", "hvp"))


def test_outputs_of_odd_kinds() -> None:
    """An object with a tensor among texts and None."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = net(3, 4, 2)

        def forward(self, inputs: Tensor) -> Any:
            return SimpleNamespace(
                logits=self.a(inputs), name="a", none=None, several=[(torch.arange(3), {})]
            )

    problem = (Odd(), lambda f, t: F.mse_loss(f.logits, t), x(), y())
    expected = differences(*problem)
    for way in WAYS:
        assert_right(way, problem, expected)


class ForwardModeInside(nn.Module):
    """What it puts out is a derivative by forward mode that has none itself: found by the net generator, seed 1742."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.func.jvp(F.glu, (self.linear(inputs),), (torch.ones(len(inputs), 4),))[1]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("matrix", ["ggn", "empirical_fisher", "residual"])
def test_outputs_without_a_derivative(matrix: str) -> None:
    problem = ForwardModeInside(), MSE, x(), y()
    assert_refused(problem, "cannot be differentiated by its weights .* use matrix=hessian", matrix=matrix)
