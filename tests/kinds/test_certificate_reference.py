"""The certificate refuses every kind of wrong matrix, and passes right ones where differences are not easily taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import WAYS, assert_right, data, differences, net
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compute.dense import hessian
from pipeline.matrix import MATRICES
from pipeline.objective.batch import Batch
from pipeline.objective.certificate import Certificate, certify, directions
from pipeline.objective.objective import objective_of
from pipeline.objective.reference import Reference

Built = tuple[nn.Module, Any, Any, Any]


def certificate_of(problem: Built, matrix: Tensor, kind: str = "hessian", exact: bool = True) -> Certificate:
    model, criterion, inputs, targets = problem
    reference = Reference(model, criterion, None, Batch.of(inputs, targets))
    objective = objective_of(model, criterion, dtype=reference.dtype) if exact else None
    products = matrix.double() @ directions(len(matrix))
    return certify(reference, MATRICES[kind](), products, matrix.dtype, targets, objective=objective)


def smooth() -> Built:
    return net(3, 4, 2), nn.MSELoss(), *data()


def relu() -> Built:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), nn.MSELoss(), *data()


class Inside(nn.Module):
    """A norm in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).float()
        return self.b(torch.tanh(h / h.square().mean(-1, keepdim=True).add(0.1).sqrt()).to(x.dtype))


def single_inside() -> Built:
    return Inside(), nn.MSELoss(), *data()


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return torch.tanh(self.b(h * h.detach()))


def detached() -> Built:
    return Hidden(), nn.MSELoss(), *data()


BUILT = {"smooth": smooth, "relu": relu, "single precision inside": single_inside, "detach": detached}


def swapped(matrix: Tensor) -> Tensor:
    """Two rows, and the same columns, in the order of another parameter."""
    order = torch.arange(len(matrix))
    order[[0, 5]] = order[[5, 0]]
    return matrix[order][:, order]


def without_cross_terms(matrix: Tensor) -> Tensor:
    result = matrix.clone()
    half = len(matrix) // 2
    result[:half, half:] = 0
    result[half:, :half] = 0
    return result


def one_entry(matrix: Tensor) -> Tensor:
    result = matrix.clone()
    result[3, 1] += 0.01 * matrix.abs().max()
    return result


def one_layer_off(matrix: Tensor) -> Tensor:
    result = matrix.clone()
    result[-2:, -2:] *= 1.05
    return result


def not_a_number(matrix: Tensor) -> Tensor:
    result = matrix.clone()
    result[2, 2] = torch.nan
    return result


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "twice": lambda matrix: 2 * matrix,
    "by the number of samples": lambda matrix: matrix / 5,
    "its negative": lambda matrix: -matrix,
    "by two percent": lambda matrix: 1.02 * matrix,
    "one triangle": lambda matrix: matrix.tril(),
    "the other order": swapped,
    "no cross terms": without_cross_terms,
    "the diagonal": lambda matrix: matrix.diagonal().diag(),
    "one entry": one_entry,
    "one layer": one_layer_off,
    "damped": lambda matrix: matrix + 0.01 * matrix.abs().max() * torch.eye(len(matrix)),
    "not a number": not_a_number,
    "infinite": lambda matrix: matrix / 0,
    "positive part": lambda matrix: (lambda e, v: v @ e.clamp(min=0).diag() @ v.T)(
        *torch.linalg.eigh(matrix)
    ),
    "low rank": lambda matrix: (lambda e, v: v[:, -3:] @ e[-3:].diag() @ v[:, -3:].T)(
        *torch.linalg.eigh(matrix)
    ),
}


@pytest.mark.parametrize("built", BUILT)
def test_right_ones_pass_and_wrong_ones_of_every_kind_do_not(built: str) -> None:
    problem = BUILT[built]()
    right = hessian(*problem, strategy="autograd", verify=False)
    assert certificate_of(problem, right).passed
    taken = []
    for kind, wrong in WRONG.items():
        if certificate_of(problem, wrong(right)).passed and not torch.equal(wrong(right), right):
            taken.append(kind)
    assert not taken


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical_fisher", "residual"])
def test_other_matrices(kind: str) -> None:
    for build in (smooth, relu, single_inside):
        problem = build()
        right = hessian(*problem, strategy="autograd", matrix=kind, verify=False)
        assert certificate_of(problem, right, kind).passed, build.__name__
        for wrong in (
            "zeros",
            "twice",
            "one triangle",
            "no cross terms",
            "one entry",
            "one layer",
            "not a number",
        ):
            other = WRONG[wrong](right)
            assert torch.equal(other, right) or not certificate_of(problem, other, kind).passed, (
                build.__name__,
                wrong,
            )


def test_the_matrix_of_another_kind_point_or_batch_is_refused() -> None:
    problem = smooth()
    model, criterion, x, y = problem
    ggn = hessian(*problem, matrix="ggn")
    half = hessian(model, criterion, x[:3], y[:3])
    summed = hessian(model, nn.MSELoss(reduction="sum"), x, y)
    with torch.no_grad():
        model[0].weight += 1e-3
    moved = hessian(*problem)
    with torch.no_grad():
        model[0].weight -= 1e-3
    for wrong in (ggn, half, summed, moved):
        assert not certificate_of(problem, wrong).passed


@pytest.mark.parametrize("distance", [1e-3, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardtanh, nn.LeakyReLU])
def test_a_kink_near_by(distance: float, activation: type[nn.Module]) -> None:
    """On this side of the kink the matrix is that of the piece; both sides are different, and both are told."""
    x, y = data()
    model = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2))
    at = 1.0 if activation is nn.Hardtanh else 0.0
    found = {}
    for side in (distance, -distance):
        with torch.no_grad():
            model[0].bias[2] += at + side - model[0](x)[3, 2]
        found[side] = hessian(model, nn.MSELoss(), x, y)
    one, other = found.values()
    assert not torch.allclose(one, other, rtol=0.01)
    assert certificate_of((model, nn.MSELoss(), x, y), other).passed
    assert not certificate_of((model, nn.MSELoss(), x, y), one).passed


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_on_a_kink(kind: str) -> None:
    """Units whose inputs are all zero, as in the dark parts of images: gradients jump, which is not rounding."""
    model, (x, y) = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), data()
    with torch.no_grad():
        model[0].bias.zero_()
    x[2] = 0
    problem = (model, nn.MSELoss(), x, y)
    right = hessian(*problem, matrix=kind)
    assert certificate_of(problem, right, kind).passed
    for wrong in (
        "zeros",
        "twice",
        "by two percent",
        "one triangle",
        "no cross terms",
        "one entry",
        "the diagonal",
    ):
        assert not certificate_of(problem, WRONG[wrong](right), kind).passed, wrong


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError("no second derivative")
        return grad * (ctx.saved_tensors[0] > 0)


def test_on_a_kink_of_a_function_that_cannot_be_differentiated_twice_nothing_passes() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(OnceOnly.apply(self.a(x)))

    model, (x, y) = Once(), data()
    with torch.no_grad():
        model.a.bias.zero_()
    x[2] = 0
    plain = nn.Sequential(model.a, nn.ReLU(), model.b)
    right = hessian(plain, nn.MSELoss(), x, y)
    for wrong in ("zeros", "twice", "one triangle", "the diagonal"):
        assert not certificate_of((model, nn.MSELoss(), x, y), WRONG[wrong](right)).passed, wrong


class Covariance(nn.Module):
    """A matrix that is positive definite at the weights, and no more at a step of a thousandth beside them."""

    def __init__(self, smallest: float) -> None:
        super().__init__()
        root = torch.linalg.qr(torch.randn(3, 3))[0]
        self.matrix = nn.Parameter(root @ torch.diag(torch.tensor([smallest, 1.0, 2.0])) @ root.T)

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.linalg.cholesky((self.matrix + self.matrix.T) / 2)
        return torch.linalg.solve_triangular(factor, x.T, upper=False).T


@pytest.mark.parametrize("smallest", [1e-1, 1e-3, 1e-5])
def test_a_loss_that_has_no_value_beside_the_weights(smallest: float) -> None:
    """Cholesky raises there. L = tr(P S) / 2, P the inverse of the matrix, S = xᵀx, and d²L[V, V] = tr(V P V P S P)."""
    problem = (Covariance(smallest), lambda f, _: f.square().sum() / 2, torch.randn(4, 3), None)
    precision = torch.linalg.inv(problem[0].matrix.detach())
    outer = precision @ problem[2].T @ problem[2] @ precision
    one = torch.einsum("ac,bd->abcd", precision, outer) + torch.einsum("ac,bd->abcd", outer, precision)
    both = (one + one.transpose(0, 1)) / 2
    expected = (both + both.transpose(2, 3)).reshape(9, 9) / 4
    for way in ("auto", "triangular"):
        assert_right(way, problem, expected, tolerance=1e-6)


class Logarithms(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.mean, self.scale = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) ** 2 / 2 + self.scale.log() ** 2 + self.scale.sqrt()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5, 1e-8])
def test_a_loss_that_is_nan_beside_the_weights(scale: float) -> None:
    """Logarithm and root of a number that a step makes negative. In closed form, the Hessian is diagonal."""
    s = torch.tensor(scale)
    expected = torch.diag(torch.stack([torch.tensor(1.0), 2 * (1 - s.log()) / s**2 - s**-1.5 / 4]))
    problem = (Logarithms(scale), lambda f, _: f.mean(), torch.randn(4), None)
    for way in ("auto", "hvp"):
        assert_right(way, problem, expected, tolerance=1e-9)


def test_scales_far_apart() -> None:
    """Weights of 1e4 and of 1e-4 in one net."""
    model, criterion, x, y = smooth()
    with torch.no_grad():
        model[0].weight *= 1e-4
        model[2].weight *= 1e4
        model[0].bias *= 1e-4
    found = hessian(model, criterion, x, y)
    assert certificate_of((model, criterion, x, y), found).passed
    assert not certificate_of((model, criterion, x, y), found * 1.01).passed


def test_a_matrix_of_zeros_is_right_for_a_linear_loss() -> None:
    problem = (nn.Linear(3, 2), lambda f, _: f.sum(), torch.randn(4, 3), None)
    zeros = hessian(*problem)
    assert not zeros.any()
    assert certificate_of(problem, zeros).passed
    assert not certificate_of(problem, zeros + 1e-6).passed


def test_a_loss_that_is_not_the_same_twice_is_refused() -> None:
    """A counter outside of the model: no derivative of it means anything."""
    calls = []

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return F.mse_loss(outputs, targets) * len(calls)

    for way in WAYS:
        with pytest.raises(Exception, match=r"differentiated|differs|cannot") as caught:
            hessian(net(3, 4, 2), criterion, *data(), strategy=WAYS[way])
        assert "\n" not in str(caught.value)


def test_it_shares_nothing_with_the_ways() -> None:
    """The reference of a problem agrees with differences that are written here."""
    problem = smooth()
    reference = Reference(*problem[:2], None, Batch(*problem[2:]))
    expected = differences(*problem)
    v = directions(len(expected))[:, 0]
    found = reference.hessian(v)
    assert float((found.value - expected @ v).norm()) <= 1e-8 * float((expected @ v).norm())
    assert float((reference.hessian_by_autograd(v) - expected @ v).norm()) <= 1e-8 * float(
        (expected @ v).norm()
    )
