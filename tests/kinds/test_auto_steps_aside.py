"""`auto` goes on where a way does not do, says which it takes and why, and refuses only where none does."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import assert_refused, data, differences, is_right, net
from torch import Tensor, nn

from pipeline.compute.dense import hessian
from pipeline.errors import PipelineError
from pipeline.strategy import Auto
from pipeline.strategy import auto as module

SIZES = {
    "autograd": Auto(),
    "hvp": Auto(very_few_weights=1),
    "khatri_rao": Auto(few_weights=1, very_few_weights=1, some_weights=1),
}


@pytest.fixture(autouse=True)
def _untold() -> None:
    module.log_choice.cache_clear()


class OneMode(torch.autograd.Function):
    """Differentiable in reverse only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class WrongForward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].cos() * 1.5


class NanForward(WrongForward):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * float("nan")


class Nothing(torch.autograd.Function):
    """No second derivative in any mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class WrongTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.detach())
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0].detach()


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


REASONS = {
    "one mode": (OneMode.apply, "forward mode|cannot differentiate"),
    "wrong forward": (WrongForward.apply, "H v differs from central differences of the model"),
    "NaN forward": (NanForward.apply, "NaN or infinite|not finite|H v differs"),
}


@pytest.mark.parametrize("first", ["hvp", "khatri_rao"])
@pytest.mark.parametrize("reason", REASONS)
def test_it_says_which_way_it_takes_and_why(
    first: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    function, match = REASONS[reason]
    problem = (Between(function), nn.MSELoss(), *data())
    with caplog.at_level(logging.INFO):
        found = hessian(*problem, strategy=SIZES[first])
    assert is_right(found, differences(*problem))
    assert len(caplog.messages) == 1
    line = caplog.messages[0]
    assert re.match(
        rf"strategy=auto takes triangular: {first} did not do \(.*({match}).*\); ", line + "; "
    ) or re.search(rf"{first} did not do \(.*({match})", line)
    assert line.startswith("strategy=auto takes triangular: ")
    assert "\n" not in line


@pytest.mark.parametrize("first", SIZES)
def test_the_first_way_that_does_is_told_with_its_own_reason(
    first: str, caplog: pytest.LogCaptureFixture
) -> None:
    problem = (net(3, 4, 2), nn.MSELoss(), *data())
    with caplog.at_level(logging.INFO):
        found = hessian(*problem, strategy=SIZES[first])
    assert is_right(found, differences(*problem))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"strategy=auto takes {first}: ")
    assert "did not do" not in caplog.messages[0]


@pytest.mark.parametrize("first", SIZES)
@pytest.mark.parametrize("function", [Nothing, WrongTwice])
def test_where_all_fail_it_names_all_ways_the_first_reason_and_a_remedy_that_is_not_there_already(
    first: str, function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    problem = (Between(function.apply), nn.MSELoss(), *data())
    with caplog.at_level(logging.INFO):
        line = assert_refused(
            problem, f"^none of {first}, .* gives the right matrix; ", strategy=SIZES[first]
        )
    assert not caplog.messages
    for name in ("hvp", "triangular", "autograd"):
        assert name in line.partition(" gives ")[0]
    remedy = line.rpartition(": ")[2]
    assert "strategy=" not in remedy
    assert "dtype=torch.float64" not in remedy


@pytest.mark.parametrize("function", [OneMode, WrongForward, Nothing, WrongTwice])
@pytest.mark.parametrize("way", ["khatri_rao", "hvp", "func", "triangular", "autograd"])
def test_a_remedy_of_one_way_is_one(function: Any, way: str) -> None:
    """What the line of a strategy names as another does give the matrix, or says why none does."""
    problem = (Between(function.apply), nn.MSELoss(), *data())
    try:
        hessian(*problem, strategy=way)
    except PipelineError as error:
        remedy = str(error).rpartition(": ")[2]
        named = re.search(r"strategy=(\w+)", remedy)
        assert named is None or named[1] != way
        if named and function in {OneMode, WrongForward}:
            assert is_right(hessian(*problem, strategy=named[1]), differences(*problem))


def test_in_single_precision_a_small_error_names_the_precision() -> None:
    """And in double precision never."""
    model, (x, y) = net(3, 4, 2), data()
    with pytest.raises(PipelineError) as caught:
        hessian(Between(WrongTwice.apply), nn.MSELoss(), x, y, dtype=torch.float64)
    assert "float64" not in str(caught.value)
    del model


def test_mistakes_are_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """What is wrong with the model itself is said at once, not once for each way."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    with caplog.at_level(logging.INFO):
        line = assert_refused((model, nn.MSELoss(), *data()), "^the model draws random numbers")
    assert "none of" not in line
    assert len(calls) == 1
    assert not caplog.messages


def test_without_a_certificate_it_steps_aside_for_what_raises_alone() -> None:
    problem = (Between(OneMode.apply), nn.MSELoss(), *data())
    for first in SIZES:
        assert is_right(hessian(*problem, strategy=SIZES[first], verify=False), differences(*problem))
