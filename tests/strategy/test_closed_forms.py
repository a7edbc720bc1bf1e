"""Every strategy against Hessians that are known on paper. NumPy computes them; N samples, C classes, D inputs."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.variants import NAMES, declared, strategy
from torch import Tensor, nn

from pipeline.compute.dense import hessian
from pipeline.criterion import BinaryCrossEntropy, CrossEntropy, SquaredError
from pipeline.layout import Layout

Array = NDArray[np.float64]

each_strategy = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def rank(matrix: Array, error: float = 0.0) -> int:
    """Eigenvalues above 1e-10 of the largest: exact zeros come out near 1e-16, the smallest others near 1e-4.

    error: that of the matrix, relative to its norm.
    """
    values = np.abs(np.linalg.eigvalsh(matrix))
    return int((values > 1e-10 * values.max() + error * np.linalg.norm(values)).sum())


def error_of(name: str) -> float:
    return declared(strategy(name))


def close(
    found: Tensor | Array,
    expected: Tensor | Array,
    error: float,
    scale: float | None = None,
    norm: float | None = None,
) -> bool:
    """Equal to 1e-12 of `scale`, or to the error that the strategy declares, relative to `norm`; of the expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    scale = np.abs(expected).max() if scale is None else scale
    norm = float(np.linalg.norm(expected)) if norm is None else norm
    return bool(np.abs(found - expected).max() <= 1e-12 * scale + error * norm)


@each_strategy
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_softmax_regression(name: str, reduction: str) -> None:
    """H = (1/N) Σ (diag p - ppᵀ) ⊗ xxᵀ, of rank (C - 1) r with r the rank of the inputs."""
    num_samples, num_classes, r = 11, 4, 3
    x = randn(num_samples, r) @ randn(r, 5)
    net = nn.Linear(5, num_classes, bias=False, dtype=torch.float64)
    labels = torch.randint(num_classes, (num_samples,))
    found = hessian(net, CrossEntropy(reduction), x, labels, strategy(name)).numpy()
    p = torch.softmax(net(x), 1).detach().numpy()
    terms = [
        np.kron(np.diag(pn) - np.outer(pn, pn), np.outer(xn, xn)) for pn, xn in zip(p, x.numpy(), strict=True)
    ]
    assert close(found, sum(terms) / (num_samples if reduction == "mean" else 1), error_of(name))
    assert rank(found, error_of(name)) == (num_classes - 1) * r


@each_strategy
def test_least_squares(name: str) -> None:
    """H = I ⊗ X̃ᵀX̃/N, its rows in the order weight, bias."""
    x = randn(7, 3)
    net = nn.Linear(3, 2, dtype=torch.float64)
    found = hessian(net, SquaredError(), x, randn(7, 2), strategy(name))
    augmented = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    whole = np.kron(np.eye(2), (augmented.T @ augmented / 7).numpy())
    order = [0, 1, 2, 4, 5, 6, 3, 7]
    assert close(found, whole[np.ix_(order, order)], error_of(name))


@each_strategy
def test_logistic_regression(name: str) -> None:
    """H = (1/N) Xᵀ diag(σ(1 - σ)) X."""
    x = randn(7, 3)
    net = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    found = hessian(net, BinaryCrossEntropy(), x, torch.randint(2, (7,)), strategy(name))
    p = torch.sigmoid(net(x)).detach()
    assert close(found, x.T @ (p * (1 - p) * x) / 7, error_of(name))


class Point(nn.Module):
    """The weights themselves, once for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(randn(2)), nn.Parameter(randn(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.u, self.v.flatten()]).expand(len(x), 5)


@each_strategy
def test_quadratic(name: str) -> None:
    """L = mean of θᵀAθ/2 + bᵀθ has H = (A + Aᵀ)/2, whichever θ."""
    a, b = randn(5, 5), randn(5)

    def loss(theta: Tensor, _: Tensor) -> Tensor:
        return (((theta @ a) * theta).sum(1) / 2 + theta @ b).mean()

    found = hessian(Point(), loss, randn(7, 1), randn(7), strategy(name))
    assert close(found, (a + a.T) / 2, error_of(name))


class DeepLinear(NamedTuple):
    net: nn.Sequential
    x: Tensor
    y: Tensor

    def weights(self) -> list[Array]:
        return [layer.weight.detach().numpy() for layer in self.net]


def deep_linear(*sizes: int, num_samples: int) -> DeepLinear:
    layers = [nn.Linear(p, q, bias=False, dtype=torch.float64) for p, q in pairwise(sizes)]
    return DeepLinear(nn.Sequential(*layers), randn(num_samples, sizes[0]), randn(num_samples, sizes[-1]))


def product(matrices: list[Array], size: int) -> Array:
    """The last one times ... times the first one."""
    return reduce(lambda done, matrix: matrix @ done, matrices, np.eye(size))


def parts_of_deep_linear(problem: DeepLinear) -> tuple[Array, Array]:
    """The GGN and the functional part of the Hessian of half the mean squared distance, from the formulas.

    With A_l the layers after l, B_l those before, C those between m < l, and e the residual, block (l, m) has
    the entries GGN: (A_lᵀA_m)[i,k] · mean (B_l x)[j] (B_m x)[q], functional: mean (A_lᵀe)[i] · C[j,k] · (B_m x)[q].
    """
    w, x = problem.weights(), problem.x.numpy()
    e = x @ product(w, x.shape[1]).T - problem.y.numpy()
    sizes = [matrix.size for matrix in w]
    ggn, functional = ([[np.zeros((p, q)) for q in sizes] for p in sizes] for _ in range(2))
    for i, left in enumerate(w):
        after, before = product(w[i + 1 :], left.shape[0]), x @ product(w[:i], x.shape[1]).T
        for m, right in enumerate(w):
            after_m, before_m = product(w[m + 1 :], right.shape[0]), x @ product(w[:m], x.shape[1]).T
            outer = np.einsum("ik,nj,nq->ijkq", after.T @ after_m, before, before_m, optimize=True) / len(x)
            ggn[i][m] = outer.reshape(left.size, right.size)
            if m < i:
                between = product(w[m + 1 : i], right.shape[0])
                mixed = np.einsum("ni,jk,nq->ijkq", e @ after, between, before_m, optimize=True) / len(x)
                functional[i][m] = mixed.reshape(left.size, right.size)
                functional[m][i] = functional[i][m].T
    return np.block(ggn), np.block(functional)


@each_strategy
def test_deep_linear_net(name: str) -> None:
    """Blocks from the formula, and the ranks of Singh et al. 2021: 144, 48, 112 for H, GGN, functional part."""
    problem = deep_linear(12, 7, 5, 6, 4, num_samples=17)
    found = hessian(problem.net, SquaredError(), problem.x, problem.y, strategy(name)).numpy()
    ggn, functional = parts_of_deep_linear(problem)
    assert close(found, ggn + functional, error_of(name))
    assert (rank(found, error_of(name)), rank(ggn), rank(functional)) == (144, 48, 112)


@each_strategy
def test_hessian_is_the_ggn_where_the_residual_is_zero(name: str) -> None:
    problem = deep_linear(4, 3, 5, 2, num_samples=9)
    fitted = problem._replace(y=problem.net(problem.x).detach())
    found = hessian(fitted.net, SquaredError("sum"), fitted.x, fitted.y, strategy(name))
    assert close(found, 9 * parts_of_deep_linear(fitted)[0], error_of(name))


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for p, q in pairwise(sizes):
        layers += [nn.Linear(p, q, dtype=torch.float64), activation()]
    return nn.Sequential(*layers[:-1])


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parts = torch.autograd.grad(CrossEntropy()(net(x), y), list(net.parameters()))
    return torch.cat([part.flatten() for part in parts])


@each_strategy
def test_rescaling_a_relu_unit(name: str) -> None:
    """H(Aθ) = -Ag at any θ, with A = +1 on what comes into a hidden unit and -1 on what goes out of it."""
    net, x, y = mlp(3, 6, 5, 4), randn(11, 3), torch.randint(4, (11,))
    h = hessian(net, CrossEntropy(), x, y, strategy(name))
    theta, g = nn.utils.parameters_to_vector(net.parameters()).detach(), gradient(net, x, y)
    for unit in range(6):
        sign = {key: torch.zeros_like(value) for key, value in net.named_parameters()}
        sign["0.weight"][unit] = sign["0.bias"][unit] = 1
        sign["2.weight"][:, unit] = -1
        a = torch.cat([value.flatten() for value in sign.values()])
        size, norm = float(h.abs().max() * theta.norm()), float(h.norm() * theta.norm())
        assert close(h @ (a * theta), -a * g, error_of(name), size, norm)


@each_strategy
def test_shifting_all_logits(name: str) -> None:
    """H annihilates 1 on the last bias, and 1aᵀ on the last weight for every a."""
    net, x, y = mlp(3, 5, 4, activation=nn.Tanh), randn(11, 3), torch.randint(4, (11,))
    h = hessian(net, CrossEntropy(), x, y, strategy(name))
    spans = Layout.of(dict(net.named_parameters())).slices()
    for key, value in (("2.bias", torch.ones(4)), ("2.weight", torch.ones(4, 1) * torch.randn(5))):
        direction = torch.zeros(len(h), dtype=torch.float64)
        direction[spans[key]] = value.double().flatten()
        allowed = 1e-14 * h.abs().max() + error_of(name) * h.norm()
        assert (h @ direction).abs().max() <= allowed * direction.norm()


@each_strategy
def test_hessian_of_all_samples_is_the_weighted_mean_of_batches(name: str) -> None:
    """H(D) = Σ (n_b/N) H_b, for batches of 5, 5 and 1."""
    net, x, y = mlp(3, 5, 4), randn(11, 3), torch.randint(4, (11,))
    whole = hessian(net, CrossEntropy(), x, y, strategy(name))
    batches = zip(x.split(5), y.split(5), strict=True)
    parts = [len(b) / 11 * hessian(net, CrossEntropy(), b, t, strategy(name)) for b, t in batches]
    assert len(parts) == 3
    norm = float(whole.norm() + sum(part.norm() for part in parts))
    assert close(sum(parts), whole, error_of(name), norm=norm)


@each_strategy
@pytest.mark.parametrize(("activation", "equal"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_layers_of_a_piecewise_linear_net(name: str, activation: type[nn.Module], equal: bool) -> None:
    """Each weight's own block of H is the GGN's, JᵀΛJ/N, for ReLU and not for tanh."""
    net, x, y = mlp(3, 5, 4, activation=activation), randn(11, 3), torch.randint(4, (11,))
    h = hessian(net, CrossEntropy(), x, y, strategy(name))
    outputs = net(x)
    p = torch.softmax(outputs, 1).detach()
    for key, span in Layout.of(dict(net.named_parameters())).slices().items():
        rows = [
            torch.autograd.grad(outputs[n, c], net.get_parameter(key), retain_graph=True)[0].flatten()
            for n in range(11)
            for c in range(4)
        ]
        j = torch.stack(rows).reshape(11, 4, -1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        ggn = torch.einsum("nci,ncd,ndj->ij", j, curvature, j) / 11
        same = close(h[span, span], ggn, error_of(name), float(h.abs().max()), float(h.norm()))
        assert same == (equal or key.startswith("2."))
