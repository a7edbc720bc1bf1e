"""Nets in double precision that compute something in single precision, or coarser, inside."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from kinds.asked import assert_refused, assert_right, data, differences, each_way, gauss_newton, once
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Callable[[Tensor, "torch.dtype | None"], Tensor]


def as_kind(x: Tensor, kind: torch.dtype | None) -> Tensor:
    return x if kind is None else x.to(kind)


def rms(x: Tensor, kind: torch.dtype | None) -> Tensor:
    h = as_kind(x, kind)
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def softmax(x: Tensor, kind: torch.dtype | None) -> Tensor:
    return torch.softmax(x, -1, dtype=kind).to(x.dtype)


def sines(x: Tensor, kind: torch.dtype | None) -> Tensor:
    """Rotary angles, made in single precision and multiplied in it."""
    angles = torch.arange(x.shape[-1], dtype=torch.float32)
    h = as_kind(x, kind)
    return (h * angles.cos().to(h) + h.flip(-1) * angles.sin().to(h)).to(x.dtype)


def layer_norm(x: Tensor, kind: torch.dtype | None) -> Tensor:
    h = as_kind(x, kind)
    return F.layer_norm(h, h.shape[-1:]).to(x.dtype)


def by_type(x: Tensor, kind: torch.dtype | None) -> Tensor:
    """`type_as` and `float()` in place of `to`."""
    h = x if kind is None else x.float()
    return torch.tanh(h).type_as(x)


def autocast_off(x: Tensor, kind: torch.dtype | None) -> Tensor:
    """As nets that guard themselves against half precision do."""
    with torch.autocast("cpu", enabled=False):
        return rms(x, kind)


class Inside(nn.Module):
    def __init__(self, function: Kind, kind: torch.dtype | None) -> None:
        super().__init__()
        self.a, self.b, self.function, self.kind = nn.Linear(3, 4), nn.Linear(4, 3), function, kind

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x), self.kind))


FUNCTIONS: dict[str, Kind] = {
    "rms": rms,
    "softmax": softmax,
    "sines": sines,
    "layer norm": layer_norm,
    "by type": by_type,
    "autocast off": autocast_off,
}


def twin(kind: str) -> tuple[nn.Module, nn.Module]:
    model, exact = Inside(FUNCTIONS[kind], torch.float32), Inside(FUNCTIONS[kind], None)
    exact.load_state_dict(model.state_dict())
    return model, exact


def labels() -> Tensor:
    return torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("kind", FUNCTIONS)
@each_way
def test_the_certificate_passes_what_is_right_to_single_precision(kind: str, way: str) -> None:
    (model, exact), x = twin(kind), data()[0]
    expected = once((__name__, kind), lambda: differences(exact, nn.CrossEntropyLoss(), x, labels()))
    assert_right(way, (model, nn.CrossEntropyLoss(), x, labels()), expected, tolerance=1e-5)


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("matrix", ["ggn", "fisher"])
def test_gauss_newton(kind: str, matrix: str) -> None:
    (model, exact), x = twin(kind), data()[0]
    expected = gauss_newton(exact, nn.CrossEntropyLoss(), x, labels())
    problem = (model, nn.CrossEntropyLoss(), x, labels())
    for way in ("auto", "auto from khatri_rao"):
        assert_right(way, problem, expected, tolerance=1e-5, matrix=matrix)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_net_in_single_precision_all_over(kind: str) -> None:
    (model, exact), x = twin(kind), data()[0].float()
    model.float()
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    expected = differences(exact, nn.CrossEntropyLoss(), x.double(), labels())
    for dtype in (None, torch.float64):
        problem = (model, nn.CrossEntropyLoss(), x, labels())
        assert_right("auto", problem, expected, tolerance=1e-4, dtype=dtype)


def test_a_loss_in_single_precision() -> None:
    model, x = Inside(rms, None), data()[0]

    def coarse(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets)

    expected = differences(model, nn.CrossEntropyLoss(), x, labels())
    for way in ("auto", "auto from khatri_rao", "triangular"):
        assert_right(way, (model, coarse, x, labels()), expected, tolerance=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_inside_is_refused_or_near(kind: torch.dtype) -> None:
    """The rounding is so coarse that no difference of gradients tells much: one line, or a matrix that is near."""
    model, exact = Inside(rms, kind), Inside(rms, None)
    exact.load_state_dict(model.state_dict())
    x = data()[0]
    expected = differences(exact, nn.CrossEntropyLoss(), x, labels())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_right(
            "auto", (model, nn.CrossEntropyLoss(), x, labels()), expected, tolerance=0.1, may_refuse=("auto",)
        )


def test_what_is_wrong_by_a_percent_is_not_taken_for_rounding() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)  # type: ignore[attr-defined]
            return x.square()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return 2 * grad * (0.97 * x + 0.03 * x.detach())

    def rounded(x: Tensor, kind: torch.dtype | None) -> Tensor:
        return Wrong.apply(rms(x, kind))

    problem = (Inside(rounded, torch.float32), nn.CrossEntropyLoss(), data()[0], labels())
    assert_refused(problem, "H v differs from central differences of the model")
