"""Functions whose derivative the framework, or their writer, has wrong in one mode: `auto` goes on to a right one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import (
    AUTOS,
    WAYS,
    assert_refused,
    assert_right,
    assert_right_or_refused,
    data,
    differences,
    gauss_newton,
    once,
)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Between(nn.Module):
    """A function between two layers."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], width: int = 4, after: int | None = None
    ) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(3, width), nn.Linear(after or width, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def triangle(flat: Tensor) -> Tensor:
    """Lower triangles (N, 2, 2) of positive diagonal."""
    first, off_diagonal, last = flat[:, :3].unbind(-1)
    zero = torch.zeros_like(first)
    rows = [torch.stack([1.5 + first.tanh(), zero], -1), torch.stack([off_diagonal, 1.5 + last.tanh()], -1)]
    return torch.stack(rows, -2)


def inverse_of_factor(flat: Tensor) -> Tensor:
    return torch.cholesky_inverse(triangle(flat)).flatten(1)


def inverse_of_factor_by_hand(flat: Tensor) -> Tensor:
    factor = triangle(flat)
    return torch.linalg.inv(factor @ factor.mT).flatten(1)


def inverse_of_upper_factor(flat: Tensor) -> Tensor:
    return torch.cholesky_inverse(triangle(flat).mT.contiguous(), upper=True).flatten(1)


def inverse_by_method(flat: Tensor) -> Tensor:
    return triangle(flat).cholesky_inverse().flatten(1)


@pytest.mark.parametrize("function", [inverse_of_factor, inverse_of_upper_factor, inverse_by_method])
@pytest.mark.parametrize("way", AUTOS)
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_cholesky_inverse(function: Callable[[Tensor], Tensor], way: str, matrix: str) -> None:
    model, by_hand = Between(function, 3, 4), Between(inverse_of_factor_by_hand, 3, 4)
    by_hand.load_state_dict(model.state_dict())
    x, y = data()
    expected = (differences if matrix == "hessian" else gauss_newton)(by_hand, nn.MSELoss(), x, y)
    assert_right(way, (model, nn.MSELoss(), x, y), expected, matrix=matrix)


@torch.library.custom_op("kinds::softened", mutates_args=())
def softened(x: Tensor) -> Tensor:
    return torch.log1p(x.exp())


@softened.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _saved(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


softened.register_autograd(lambda ctx, grad: grad * ctx.saved_tensors[0].sigmoid(), setup_context=_saved)


@torch.library.custom_op("kinds::twice_custom", mutates_args=())
def cubed(x: Tensor) -> Tensor:
    return x**3


@torch.library.custom_op("kinds::slope_of_cubed", mutates_args=())
def slope_of_cubed(x: Tensor) -> Tensor:
    return 3 * x**2


cubed.register_fake(torch.empty_like)
slope_of_cubed.register_fake(torch.empty_like)
cubed.register_autograd(lambda ctx, grad: grad * slope_of_cubed(*ctx.saved_tensors), setup_context=_saved)
slope_of_cubed.register_autograd(lambda ctx, grad: 6 * grad * ctx.saved_tensors[0], setup_context=_saved)


class Soft(torch.autograd.Function):
    """Written in the old style: forward mode and `vmap` do not know it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.log1p(x.exp())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].sigmoid()


class SoftByTransforms(torch.autograd.Function):
    """With rules for every mode: they hold once, and nested forward mode loses terms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.log1p(x.exp())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].sigmoid()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].sigmoid()


class WrongForward(SoftByTransforms):
    """Whoever wrote it has forgotten a factor in forward mode."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].sigmoid() / 2


class SoftByOutput(torch.autograd.Function):
    """Saves its output, of which its slope is made; two inputs, one of them no tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        y = torch.tanh(factor * x)
        ctx.save_for_backward(y)
        ctx.factor = factor
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return ctx.factor * grad * (1 - y.square()), None


RIGHT_IN_REVERSE: dict[str, Callable[[Tensor], Tensor]] = {
    "custom_op": softened,
    "custom_op with a custom slope": cubed,
    "old style": Soft.apply,
    "rules for every mode": SoftByTransforms.apply,
    "a wrong rule for forward mode": WrongForward.apply,
    "its output kept": lambda x: SoftByOutput.apply(x, 0.8),
    "an autograd.Function inside vmap": lambda x: torch.vmap(SoftByTransforms.apply)(x),
}


@pytest.mark.parametrize("function", RIGHT_IN_REVERSE)
@pytest.mark.parametrize("way", [*AUTOS, "triangular"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_right_in_reverse(function: str, way: str, matrix: str) -> None:
    reference = differences if matrix == "hessian" else gauss_newton
    problem = (Between(RIGHT_IN_REVERSE[function]), nn.MSELoss(), *data())
    expected = once((__name__, function, matrix), lambda: reference(*problem))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # custom_op: no batching rule, slow
        assert_right(way, problem, expected, matrix=matrix, verify=way in AUTOS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("function", RIGHT_IN_REVERSE)
@pytest.mark.parametrize("matrix", ["hessian", "ggn", "empirical_fisher"])
@pytest.mark.parametrize("way", ["khatri_rao", "hvp", "func"])
def test_a_way_that_is_wrong_is_refused(function: str, matrix: str, way: str) -> None:
    problem = (Between(RIGHT_IN_REVERSE[function]), nn.MSELoss(reduction="sum"), *data())
    if matrix == "empirical_fisher":
        expected = moment_of_gradients(*problem)
    else:
        expected = (differences if matrix == "hessian" else gauss_newton)(*problem)
    assert_right_or_refused(way, problem, expected, matrix=matrix)


def moment_of_gradients(model: nn.Module, criterion: Any, x: Tensor, y: Tensor) -> Tensor:
    rows = []
    for one, target in zip(x.split(1), y.split(1), strict=True):
        parts = torch.autograd.grad(criterion(model(one), target), list(model.parameters()))
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows).T @ torch.stack(rows)


class Once(Soft):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].sigmoid()


class Kept(torch.autograd.Function):
    """Keeps what it computed beside the graph: its slope is a constant in double backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = x.sigmoid()
        return torch.log1p(x.exp())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.slope


def clipped(x: Tensor) -> Tensor:
    """A hook that clips gradients: they are of no loss any more."""
    y = torch.tanh(x)
    if y.requires_grad:
        y.register_hook(lambda grad: grad.clamp(-0.02, 0.02))
    return y


class ByNumpy(torch.autograd.Function):
    """A slope computed outside of PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy().copy()).sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.from_numpy(ctx.saved_tensors[0].detach().numpy().copy()).cos()


WRONG_TWICE: dict[str, Callable[[Tensor], Tensor]] = {
    "once_differentiable": Once.apply,
    "kept on ctx": Kept.apply,
    "clipped": clipped,
    "by NumPy": ByNumpy.apply,
}


@pytest.mark.parametrize("function", WRONG_TWICE)
@pytest.mark.parametrize("way", WAYS)
def test_what_no_way_gets_right_is_refused(function: str, way: str) -> None:
    problem = (Between(WRONG_TWICE[function]), nn.MSELoss(), *data())
    expected = differences(*problem)
    assert_right_or_refused(way, problem, expected, 1e-6)


class Flow(nn.Module):
    """log |det W| of a W that is orthogonal, as it is where a flow starts."""

    def __init__(self, logdet: Callable[[Tensor], Tensor], matrix: Tensor) -> None:
        super().__init__()
        self.w, self.b, self.logdet = nn.Parameter(matrix), nn.Parameter(torch.zeros(3)), logdet

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x @ self.w.T + self.b), self.logdet(self.w).expand(len(x))


def likelihood(outputs: tuple[Tensor, Tensor], _: Any) -> Tensor:
    return (0.5 * outputs[0].square().sum(-1) - outputs[1]).mean()


DETERMINANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "det": lambda w: torch.linalg.det(w).abs().log(),
    "torch.det": lambda w: torch.det(w).square().log() / 2,
    "method": lambda w: w.det().abs().log(),
    "logdet of the gram": lambda w: torch.logdet(w.mT @ w) / 2,
    "slogdet": lambda w: torch.linalg.slogdet(w)[1],
    "factors": lambda w: torch.linalg.qr(w)[1].diagonal().abs().log().sum(),
}


@pytest.mark.parametrize("kind", DETERMINANTS)
@pytest.mark.parametrize("matrix", ["orthogonal", "identity", "permutation", "reflection"])
@pytest.mark.parametrize("way", AUTOS)
def test_determinants(kind: str, matrix: str, way: str) -> None:
    """Against the second derivative in closed form, which has no determinant in it: -∂² log|det W| = W⁻¹ ⊗ W⁻¹."""
    weights = {
        "orthogonal": torch.linalg.qr(torch.randn(3, 3))[0],
        "identity": torch.eye(3),
        "permutation": torch.eye(3)[[2, 0, 1]],
        "reflection": torch.diag(torch.tensor([1.0, -1.0, 1.0])),
    }[matrix]
    x = torch.randn(5, 3)
    smooth = Flow(lambda w: 0 * w.sum(), weights)
    expected = differences(smooth, likelihood, x, None)
    inverse = torch.linalg.inv(weights)
    expected[:9, :9] += torch.einsum("li,jk->ijkl", inverse, inverse).reshape(9, 9)  # of W[i, j] and W[k, l]
    assert_right(way, (Flow(DETERMINANTS[kind], weights), likelihood, x, None), expected)


def test_the_refusal_of_all_ways_names_the_first_reason() -> None:
    problem = (Between(Once.apply), nn.MSELoss(), *data())
    line = assert_refused(problem, "^none of autograd, hvp, triangular gives the right matrix; ")
    assert "strategy=auto" not in line, "a remedy that is in use already"
