"""Inputs that do not count samples: masks, graphs, flags, grids; as long as the batch, shorter, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from kinds.asked import assert_right, data, differences, each_way, gauss_newton, once
from torch import Tensor, nn

Built = tuple[nn.Module, Any, Any, Any]
N = 5


class Masked(nn.Module):
    """Attention over T tokens by a mask (T, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        scores = scale * self.q(x) @ self.q(x).mT
        scores = scores if mask is None else scores.masked_fill(~mask, -1e9)
        return (torch.softmax(scores, -1) @ self.v(x)).mean(1)


class Graph(nn.Module):
    """Messages along edges (2, E), with weights of the edges."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.out = nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor, edges: Tensor, strength: Tensor | None = None) -> Tensor:
        source, target = edges
        sent = torch.tanh(self.message(x[source]))
        sent = sent if strength is None else sent * strength[:, None]
        return self.out(torch.cat([x, torch.zeros_like(x).index_add(0, target, sent)], -1))


class Adjacency(nn.Module):
    """A matrix of neighbors, (N, N), dense or sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.b(adjacency @ torch.tanh(adjacency @ self.a(x)))


class OnGrid(nn.Module):
    """The branch sees functions (N, S), the trunk the points of a grid (G, 1): outputs (N, G)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = nn.Linear(3, 3), nn.Linear(1, 3)

    def forward(self, functions: Tensor, grid: Tensor) -> Tensor:
        return torch.tanh(self.branch(functions)) @ torch.tanh(self.trunk(grid)).T


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(
        self, ids: Tensor | None = None, mask: Any = None, cache: bool = True, name: str = "", **_: Any
    ) -> Tensor:
        h = torch.tanh(self.a(ids))
        return self.b(h if mask is None else h * mask[..., None])


class Two(nn.Module):
    """A support set of other length beside the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(0.8))

    def forward(self, queries: Tensor, support: Tensor) -> Tensor:
        return -self.scale * torch.cdist(self.embed(queries), self.embed(support)).square()[:, :2]


class OneObject(nn.Module):
    """Everything in one argument, as a batch of graphs is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Graph()

    def forward(self, batch: Any) -> Tensor:
        return self.inner(batch.x, batch.edges)


class Pieces(NamedTuple):
    x: Tensor
    edges: Tensor


EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 4]])


def tokens(length: int, n: int = N) -> Tensor:
    return torch.randn(n, length, 3)


def with_targets(model: nn.Module, inputs: Any, *shape: int) -> Built:
    return model, nn.MSELoss(), inputs, torch.randn(*(shape or (N, 2)))


def causal(length: int) -> Tensor:
    return torch.ones(length, length).tril().bool()


def row_normalized() -> Tensor:
    matrix = torch.rand(N, N)
    return matrix / matrix.sum(1, keepdim=True)


KINDS: dict[str, Callable[[], Built]] = {
    "mask": lambda: with_targets(Masked(), (tokens(3), causal(3))),
    "mask as long as the batch": lambda: with_targets(Masked(), (tokens(N), causal(N))),
    "mask for heads": lambda: with_targets(Masked(), (tokens(4), causal(4)[None])),
    "no mask": lambda: with_targets(Masked(), (tokens(3), None)),
    "a number after": lambda: with_targets(Masked(), (tokens(3), None, 0.5)),
    "mask before, by keyword": lambda: with_targets(Masked(), {"mask": causal(3), "x": tokens(3)}),
    "edges": lambda: with_targets(Graph(), (torch.randn(N, 3), EDGES)),
    "as many edges as nodes": lambda: with_targets(Graph(), (torch.randn(N, 3), EDGES[:, :N])),
    "edges with strengths": lambda: with_targets(Graph(), (torch.randn(N, 3), EDGES, torch.rand(7))),
    "strengths as long as the batch": lambda: with_targets(
        Graph(), (torch.randn(N, 3), EDGES[:, :N], torch.rand(N))
    ),
    "two nodes": lambda: with_targets(Graph(), (torch.randn(2, 3), torch.tensor([[0, 1], [1, 0]])), 2, 2),
    "dense adjacency": lambda: with_targets(Adjacency(), (torch.randn(N, 3), row_normalized())),
    "grid": lambda: with_targets(OnGrid(), (torch.randn(N, 3), torch.linspace(0, 1, 4)[:, None]), N, 4),
    "grid as long as the batch": lambda: with_targets(
        OnGrid(), (torch.randn(N, 3), torch.linspace(0, 1, N)[:, None]), N, N
    ),
    "None first": lambda: with_targets(Keywords(), {"mask": None, "ids": torch.randn(N, 3)}),
    "flag and name": lambda: with_targets(
        Keywords(), {"cache": False, "name": "x", "ids": torch.randn(N, 3)}
    ),
    "a list of words": lambda: with_targets(Keywords(), {"words": ["a"] * N, "ids": torch.randn(N, 3)}),
    "support": lambda: with_targets(Two(), (torch.randn(N, 3), torch.randn(3, 3))),
    "support that is longer": lambda: with_targets(Two(), (torch.randn(N, 3), torch.randn(2 * N, 3))),
    "a named tuple": lambda: with_targets(OneObject(), Pieces(torch.randn(N, 3), EDGES)),
    "an object": lambda: with_targets(OneObject(), SimpleNamespace(x=torch.randn(N, 3), edges=EDGES)),
}


def plain(problem: Built) -> Built:
    """As the user calls it by himself: what is one argument, in a tuple."""
    model, criterion, inputs, targets = problem
    one = isinstance(inputs, Pieces | SimpleNamespace)
    return model, criterion, (inputs,) if one else inputs, targets


@pytest.mark.parametrize("kind", KINDS)
@each_way
def test_hessian(kind: str, way: str) -> None:
    problem = KINDS[kind]()
    assert_right(
        way,
        problem,
        once((__name__, kind), lambda: differences(*plain(problem))),
        may_refuse=("func",),
        verify=way == "auto",
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["khatri_rao", "auto"])
def test_gauss_newton(kind: str, way: str) -> None:
    problem = KINDS[kind]()
    assert_right(
        way,
        problem,
        once((__name__, kind, 0), lambda: gauss_newton(*plain(problem))),
        matrix="ggn",
        verify=way == "auto",
    )


@each_way
def test_targets_that_count_no_samples(way: str) -> None:
    """A mapping with a number, a text, None and a tensor of classes beside the targets."""
    model, x, y = Keywords(), *data()
    scales = torch.tensor([0.5, 2.0])

    def criterion(outputs: Tensor, targets: Mapping[str, Any]) -> Tensor:
        return targets["weight"] * (targets["scales"] * (outputs - targets["y"]).square()).mean()

    targets = {"weight": 0.3, "name": "a", "none": None, "scales": scales, "y": y}
    expected = 0.3 * differences(model, lambda outputs, y: (scales * (outputs - y).square()).mean(), x, y)
    assert_right(way, (model, criterion, x, targets), expected)


@each_way
def test_no_inputs_at_all(way: str) -> None:
    """A model that is a table of its weights."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u, self.v = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 4))

        def forward(self) -> Tensor:
            return self.u @ self.v

    problem = (Table(), nn.MSELoss(), (), torch.randn(3, 4))
    assert_right(way, problem, differences(*problem))
