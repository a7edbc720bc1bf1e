"""`Plain`: what it spells out equals PyTorch's function, and is differentiated twice rightly in three modes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.plain_cases import TABLE, TOKENS
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError
from pipeline.objective.decompositions.mode import DecompositionMode

Function = Callable[..., Any]
STEP = 2.0**-13
ROUGH = {
    "hardsigmoid": 1e-7,
    "hardsigmoid in place": 1e-7,
}  # PyTorch's derivative has 1/6 in single precision


def built(id: str) -> tuple[Function, Tensor]:
    """The function of the table as one of a flat vector, and a point."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(id.encode()))
        torch.set_default_dtype(torch.float64)
        try:
            function, point = TABLE[id]()
        finally:
            torch.set_default_dtype(before)
    sizes = [value.numel() for value in point.values()]

    def of_vector(vector: Tensor) -> Any:
        parts = vector.split(sizes)
        return function(
            {
                name: part.reshape(value.shape)
                for part, (name, value) in zip(parts, point.items(), strict=True)
            }
        )

    return of_vector, torch.cat([value.reshape(-1) for value in point.values()])


def outputs_of(function: Function, vector: Tensor) -> list[Tensor]:
    return [
        value
        for value in pytree.tree_leaves(function(vector))
        if isinstance(value, Tensor) and value.is_floating_point()
    ]


def number(function: Function) -> Callable[[Tensor], Tensor]:
    """A smooth function of all outputs, with another weight for each."""

    def value(vector: Tensor) -> Tensor:
        flat = torch.cat([output.reshape(-1) for output in outputs_of(function, vector)])
        flat = flat.masked_fill(flat.isinf(), 0)
        return torch.sin(torch.arange(1, len(flat) + 1).to(flat).sqrt() * flat).sum()

    return value


def spelt_out(function: Function) -> Function:
    def run(*args: Any) -> Any:
        with DecompositionMode():
            return function(*args)

    return run


@pytest.fixture(autouse=True)
def in_double() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("id", TABLE)
def test_values_and_gradients_are_those_of_torch(id: str) -> None:
    function, vector = built(id)
    found, expected = outputs_of(spelt_out(function), vector), outputs_of(function, vector)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    slope = gradient(spelt_out(function), vector)
    torch.testing.assert_close(slope, gradient(function, vector), rtol=ROUGH.get(id, 1e-11), atol=1e-12)


def gradient(function: Function, vector: Tensor) -> Tensor:
    leaf = vector.detach().clone().requires_grad_()
    return torch.autograd.grad(number(function)(leaf), leaf)[0]


def directions(vector: Tensor) -> Tensor:
    return torch.randn(2, len(vector), generator=torch.Generator().manual_seed(0))


def differences(function: Function, vector: Tensor) -> tuple[Tensor, float]:
    """Derivatives of torch's gradient along the directions, extrapolated as in `oracles.py`, and their error."""

    def slope(direction: Tensor, step: float) -> Tensor:
        ahead, behind = (gradient(function, vector + sign * step * direction) for sign in (1, -1))
        return (ahead - behind) / (2 * step)

    wide, narrow = (torch.stack([slope(d, step) for d in directions(vector)]) for step in (STEP, STEP / 2))
    rounding = 64 * torch.finfo(vector.dtype).eps * (1 + gradient(function, vector).abs().max().item()) / STEP
    return (4 * narrow - wide) / 3, (wide - narrow).abs().max().item() + rounding


def reverse_over_reverse(value: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    leaf = vector.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
    return torch.stack(
        [torch.autograd.grad(slope, leaf, d, retain_graph=True)[0] for d in directions(vector)]
    )


def forward_over_reverse(value: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    return vmap(lambda direction: jvp(grad(value), (vector,), (direction,))[1])(directions(vector))


def hessian_of_functions(value: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    return directions(vector) @ hessian(value)(vector)


MODES = (reverse_over_reverse, forward_over_reverse, hessian_of_functions)


@pytest.mark.parametrize("id", TABLE)
def test_second_derivatives_are_right_in_every_mode(id: str) -> None:
    function, vector = built(id)
    expected, tolerance = differences(function, vector)
    assert tolerance <= 1e-5 * (1 + expected.abs().max())
    tolerance += ROUGH.get(id, 0.0) * expected.abs().max()
    for mode in MODES:
        assert (mode(number(spelt_out(function)), vector) - expected).abs().max() <= tolerance, mode.__name__


def test_what_is_spelt_out_is_needed() -> None:
    """PyTorch's own is wrong; without this, the table above proves nothing."""
    for id, mode in (("layer_norm", hessian_of_functions), ("weight_norm 0", reverse_over_reverse)):
        function, vector = built(id)
        expected, tolerance = differences(function, vector)
        assert (mode(number(function), vector) - expected).abs().max() > 1000 * tolerance


@pytest.mark.parametrize("padding", [1, -4])
def test_row_of_the_padding_is_a_constant(padding: int) -> None:
    tokens, weight = torch.tensor([[0, 1, 1], [4, 1, 0]]), torch.randn(5, 2)

    def value(vector: Tensor) -> Tensor:
        here = vector.reshape(5, 2)
        with DecompositionMode(constants={id(here): weight}):
            return F.embedding(tokens, here, padding).sin().sum(1).square().sum()

    def without(vector: Tensor) -> Tensor:
        rows = vector.reshape(5, 2).clone()
        rows[1] = weight[1]
        return rows[tokens].sin().sum(1).square().sum()

    vector = weight.flatten() + 0.1
    assert torch.equal(value(vector), without(vector))
    assert torch.equal(
        value(weight.flatten()), F.embedding(tokens, weight, padding).sin().sum(1).square().sum()
    )
    for mode in MODES:
        torch.testing.assert_close(mode(value, vector), mode(without, vector))


def test_windows_of_unpooling_that_overlap() -> None:
    """The maximum is one number, however many windows see it."""

    def value(vector: Tensor, unpool: bool = True) -> Tensor:
        pooled, places = F.max_pool1d(vector[None, None], 2, 1, return_indices=True)
        if not unpool:
            return (vector[[1, 3]] ** 3).sum()
        return (F.max_unpool1d(pooled, places, 2, 1) ** 3).sum()

    vector = torch.tensor([0.1, 2.0, 0.3, 1.5, 0.2])
    spelled = spelt_out(value)
    assert torch.equal(spelled(vector), value(vector, False))
    for mode in MODES:
        torch.testing.assert_close(mode(spelled, vector), mode(lambda v: value(v, False), vector))


@pytest.mark.parametrize("upper", [False, True])
def test_matrices_of_which_one_triangle_is_read(upper: bool) -> None:
    matrix = torch.randn(3, 3) + 4 * torch.eye(3)
    triangle = torch.triu if upper else torch.tril

    def cholesky(vector: Tensor) -> Tensor:
        return torch.linalg.cholesky(vector.reshape(3, 3), upper=upper).sin().sum()

    def eigenvalues(vector: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(vector.reshape(3, 3), UPLO="U" if upper else "L").sin().sum()

    def vectors(vector: Tensor) -> Tensor:
        return (
            torch.linalg.eigh(vector.reshape(3, 3), UPLO="U" if upper else "L")
            .eigenvectors.square()
            .sin()
            .sum()
        )

    def of_old(vector: Tensor) -> Tensor:
        return torch.cholesky(vector.reshape(3, 3), upper).sin().sum()

    for value in (cholesky, eigenvalues, vectors):

        def symmetric(vector: Tensor, value: Function = value) -> Tensor:
            half = triangle(vector.reshape(3, 3))
            return value((half + half.T - half.diag().diag()).flatten())

        assert value(matrix.flatten()) == spelt_out(value)(matrix.flatten())
        for mode in MODES:
            torch.testing.assert_close(
                mode(spelt_out(value), matrix.flatten()), mode(symmetric, matrix.flatten())
            )
    for mode in MODES:
        torch.testing.assert_close(
            mode(spelt_out(of_old), matrix.flatten()), mode(spelt_out(cholesky), matrix.flatten())
        )


REFUSED = {
    "embedding with max_norm=1.0 rewrites its weights": lambda x: F.embedding(TOKENS, x, max_norm=1.0),
    "embedding with scale_grad_by_freq": lambda x: F.embedding(TOKENS, x, scale_grad_by_freq=True),
    "embedding with scale_grad_by_freq has": lambda x: torch.embedding(x, TOKENS, -1, True),
    "use torch.nn.functional.embedding_bag": lambda x: torch.embedding_bag(x, TOKENS, TOKENS[:1], True),
    "embedding_bag with max_norm=2 rewrites": lambda x: F.embedding_bag(TOKENS, x, max_norm=2),
    "scatter_reduce with reduce='prod'": lambda x: x.scatter_reduce(0, TOKENS, x[:3], "prod"),
    "scatter_reduce with reduce='prod' has": lambda x: torch.scatter_reduce(
        x, 0, TOKENS, x[:3], reduce="prod"
    ),
    "use torch.linalg.solve_triangular": lambda x: torch.triangular_solve(x, torch.eye(5)),
    "native_layer_norm has no right second": lambda x: torch.native_layer_norm(x, (2,), None, None, 0.1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_right_derivative_is_refused(message: str) -> None:
    x = torch.randn(5, 4)
    with pytest.raises(PipelineError, match=message) as caught, DecompositionMode():
        REFUSED[message](x)
    assert "\n" not in str(caught.value)


def test_other_reductions_of_scatter_reduce_are_not_refused() -> None:
    x = torch.randn(5, 4)
    with DecompositionMode():
        assert torch.equal(
            x.scatter_reduce(0, TOKENS, x[:3], "amax"), x.scatter_reduce(0, TOKENS, x[:3], reduce="amax")
        )


def test_outputs_and_targets_of_different_shape_are_warned_of() -> None:
    f, y = torch.randn(3, 1), torch.randn(3)
    with (
        pytest.warns(UserWarning, match=r"mse_loss: outputs \(3, 1\) and targets \(3,\) are broadcast"),
        DecompositionMode(),
    ):
        found = F.mse_loss(f, y)
    torch.testing.assert_close(found, (f - y).square().mean())


def test_other_modes_see_what_is_inside() -> None:
    """Those that were entered before see the linear maps of attention and recurrent layers, weights as they are."""

    class Weights(torch.overrides.TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.linear:
                self.seen += [id(args[1]), id(args[2])]
            return func(*args, **(kwargs or {}))

    models = (nn.MultiheadAttention(4, 2), nn.LSTM(4, 4, bidirectional=True), nn.GRUCell(4, 4))
    for model, call in zip(
        models, (lambda m, x: m(x, x, x), lambda m, x: m(x), lambda m, x: m(x[0])), strict=True
    ):
        x = torch.randn(3, 2, 4)
        with Weights() as weights, DecompositionMode():
            call(model, x)
        assert {id(value) for value in model.parameters()} <= set(weights.seen)
