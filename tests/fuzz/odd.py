"""Kinds of blocks over which tools for second derivatives are known to fall."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from fuzz.parts import Part, Site, joined, kind
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize


@kind(holds=True, how=("add", "scaled", "dense"), weight=2)
def residual(s: Site) -> Part:
    if s.o.how == "scaled":
        return Part(
            lambda p, x: joined(x, p.scale * p.body(x, p.given)), body=s.chain(), scale=torch.tensor(0.5)
        )
    if s.o.how == "dense":
        return Part(lambda p, x: torch.cat([x.flatten(1), p.body(x, p.given).flatten(1)], 1), body=s.chain())
    return Part(lambda p, x: joined(x, p.body(x, p.given)), body=s.chain())


@kind(how=("glu", "highway", "experts", "squeeze"), weight=2)
def gated(s: Site) -> Part:
    maps = {"gate": s.square(), "map": s.square()}
    match s.o.how:
        case "highway":

            def highway(p: Part, x: Tensor) -> Tensor:
                t = torch.sigmoid(p.gate(x))
                return t * torch.tanh(p.map(x)) + (1 - t) * x

            return Part(highway, **maps)
        case "experts":
            experts = nn.ModuleList([nn.Linear(s.width, 2) for _ in range(2)])

            def mixed(p: Part, x: Tensor) -> Tensor:
                share = p.gate(x).softmax(-1)
                return sum(share[..., e : e + 1] * expert(x) for e, expert in enumerate(p.experts))

            return Part(mixed, gate=nn.Linear(s.width, 2), experts=experts)
        case "squeeze":
            return Part(lambda p, x: x * torch.sigmoid(p.gate(x.mean(1, keepdim=True))), gate=s.square())
    return Part(lambda p, x: torch.sigmoid(p.gate(x)) * p.map(x), **maps)


@kind(odd=True, how=("twice", "three_times", "two_names", "in_list", "two_sizes"))
def reused(s: Site) -> Part:
    """One module called more than once, under one name or two."""
    layer = s.square()
    match s.o.how:
        case "two_names":
            return Part(lambda p, x: p.second(torch.tanh(p.first(x))), first=layer, second=layer)
        case "in_list":
            body = nn.Sequential(layer, nn.Tanh(), layer, nn.Sigmoid(), nn.Linear(s.width, 2))
            return Part(lambda p, x: p.body(x), body=body)
        case "two_sizes":

            def run(p: Part, x: Tensor) -> Tensor:
                whole = p.map(x.flatten(1, -2).mean(1) if x.ndim > 2 else x).mean(1)
                return p.map(x).sin() * whole.reshape(-1, *[1] * (x.ndim - 1))

            return Part(run, map=layer)
        case "three_times":
            return Part(lambda p, x: p.map(p.map(p.map(x).tanh()).tanh()), map=layer)
    return Part(lambda p, x: p.map(torch.tanh(p.map(x))), map=layer)


@kind(odd=True, how=("linears", "transposed", "parameter", "bias", "across"))
def tied(s: Site) -> Part:
    first, second = s.square(), s.square()
    match s.o.how:
        case "transposed":
            return Part(lambda p, x: F.linear(torch.tanh(F.linear(x, p.w)), p.w.T), w=torch.randn(3, s.width))
        case "parameter":
            part = Part(lambda p, x: (x @ p.a).tanh() @ p.b, a=torch.randn(s.width, s.width))
            part.b = part.a
            return part
        case "bias":
            second.bias = first.bias
        case "across":  # a weight as the bias of another
            first = nn.Linear(s.width, 1, bias=False)
            return Part(
                lambda p, x: F.linear(x, p.second.weight, p.first.weight[0]).tanh(),
                first=first,
                second=second,
            )
        case _:
            second.weight = first.weight
    return Part(lambda p, x: p.second(torch.tanh(p.first(x))), first=first, second=second)


@kind(
    odd=True,
    what=("samples", "attention", "edges", "number", "flag", "nothing", "positions", "whole", "text", "list"),
)
def further_input(s: Site) -> Part:
    """An input beside the samples; only that of `samples` has one entry for each of them."""
    n, give = len(s.x), s.room.give
    match s.o.what:
        case "samples":
            keep = 0.5 + torch.rand(n)
            return Part(lambda p, x, m: x * m.reshape(-1, *[1] * (x.ndim - 1)), give("keep", keep))
        case "attention" if s.x.ndim == 3:
            length = s.x.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool).tril()

            def attend(p: Part, x: Tensor, mask: Tensor) -> Tensor:
                scores = (x @ p.key(x).transpose(1, 2)).masked_fill(~mask, float("-inf"))
                return scores.softmax(-1) @ p.value(x)

            return Part(attend, give("mask", mask), key=s.square(), value=nn.Linear(s.width, 2))
        case "edges":
            edges = torch.stack([torch.arange(n + 1) % n, (torch.arange(n + 1) * 2 + 1) % n])

            def messages(p: Part, x: Tensor, edges: Tensor) -> Tensor:
                source, target = edges
                sent = torch.tanh(p.message(x[source]))
                return (
                    torch.zeros_like(sent[:1])
                    .repeat(len(x), *[1] * (sent.ndim - 1))
                    .index_add(0, target, sent)
                )

            return Part(messages, give("edges", edges), message=s.square())
        case "number":
            return Part(lambda p, x, c: p.map(x) * c, give("factor", 0.7), map=s.square())
        case "flag":
            return Part(lambda p, x, on: p.map(x).tanh() if on else x, give("flag", True), map=s.square())
        case "nothing":
            return Part(lambda p, x, m: p.map(x) if m is None else x, give("nothing", None), map=s.square())
        case "positions":
            where = torch.arange(s.x.shape[1])
            table = nn.Embedding(s.x.shape[1], 1)

            def placed(p: Part, x: Tensor, where: Tensor) -> Tensor:
                return x + p.table(where).reshape(1, -1, *[1] * (x.ndim - 2))

            return Part(placed, give("positions", where), table=table)
        case "text":
            return Part(lambda p, x, w: getattr(torch, w)(p.map(x)), give("name", "tanh"), map=s.square())
        case "list":
            parts = [torch.rand(n), None, 2]
            return Part(lambda p, x, many: p.map(x) * many[2] + many[0].reshape(-1, *[1] * (x.ndim - 1)),
                        give("several", parts), map=s.square())  # fmt: skip
    whole = torch.randn(s.width, 2)
    return Part(lambda p, x, w: p.map(x) @ w, give("projection", whole), map=s.square())


@kind(odd=True, holds=True, how=("all", "biases", "some"))
def frozen(s: Site) -> Part:
    body = s.chain()
    weights = dict(body.named_parameters())
    for k, (name, value) in enumerate(weights.items()):
        if s.o.how == "all" or (s.o.how == "biases" and "bias" in name) or (s.o.how == "some" and k % 2 == 0):
            value.requires_grad_(False)
    return Part(lambda p, x: p.body(x, p.given), body=body)


def d_of(x: Tensor) -> int:
    return x.shape[-1]


def rows(x: Tensor) -> Tensor:
    """All vectors of all samples, one below the other."""
    return x.reshape(-1, d_of(x))


def stacks(x: Tensor) -> Tensor:
    """The vectors of each sample, (N, T, d)."""
    return x.reshape(len(x), -1, d_of(x))


def added(p: Any, x: Tensor) -> Tensor:
    return torch.addmm(p.b, rows(x), p.w, beta=0.5, alpha=2).reshape(len(x), -1)


def added_in_batches(p: Any, x: Tensor) -> Tensor:
    return torch.baddbmm(p.b, rows(x)[None].expand(2, -1, -1), p.w).transpose(0, 1).reshape(len(x), -1)


def shared_in_batches(p: Any, x: Tensor) -> Tensor:
    return torch.bmm(stacks(x), p.w.expand(len(x), -1, -1)).squeeze(1)


def by_place_in_batch(p: Any, x: Tensor) -> Tensor:
    """A row of the weight for each sample, by its number."""
    found = F.embedding(torch.arange(len(x)).remainder(3), p.w)
    return x + found.reshape(len(x), *[1] * (x.ndim - 2), d_of(x))


def by_distance(p: Any, x: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(stacks(x), p.w.expand(len(x), -1, -1)).square()).flatten(1)


def between_normed(p: Any, x: Tensor) -> Tensor:
    return F.linear(F.normalize(x + 1, dim=-1), F.normalize(p.w, dim=1))


Shapes = dict[str, tuple[int, ...]]
FUNCTIONAL: dict[str, tuple[Callable[[int], Shapes], Callable[[Any, Tensor], Tensor]]] = {
    "linear": (lambda d: {"w": (2, d), "b": (2,)}, lambda p, x: F.linear(x, p.w, p.b)),
    "matmul": (lambda d: {"w": (d, 2)}, lambda p, x: x @ p.w),
    "matmul_left": (lambda d: {"w": (2, d)}, lambda p, x: (p.w @ rows(x).T).T.reshape(len(x), -1)),
    "einsum": (lambda d: {"w": (d, 2)}, lambda p, x: torch.einsum("n...d,de->n...e", x, p.w)),
    "einsum_square": (
        lambda d: {"w": (d, d)},
        lambda p, x: torch.einsum("n...d,de,n...e->n...", x, p.w, x)[..., None],
    ),
    "einsum_twice": (lambda d: {"w": (d, 2)}, lambda p, x: torch.einsum("n...d,de,fe->n...f", x, p.w, p.w)),
    "addmm": (lambda d: {"w": (d, 2), "b": (2,)}, added),
    "baddbmm": (lambda d: {"w": (2, d, 2), "b": (2, 1, 2)}, added_in_batches),
    "bmm_shared": (lambda d: {"w": (d, 2)}, shared_in_batches),
    "bilinear": (lambda d: {"w": (2, d, d), "b": (2,)}, lambda p, x: F.bilinear(x, x.sin(), p.w, p.b)),
    "scale": (lambda d: {"w": (d,), "b": ()}, lambda p, x: (x * p.w + p.b).sin()),
    "tensordot": (lambda d: {"w": (d, 2)}, lambda p, x: torch.tensordot(x, p.w, dims=1)),
    "mv": (lambda d: {"w": (d,)}, lambda p, x: rows(x).mv(p.w).reshape(len(x), -1).sum(1, keepdim=True)),
    "outer": (lambda d: {"w": (d,), "v": (2,)}, lambda p, x: x @ torch.outer(p.w, p.v)),
    "linear_of_function": (lambda d: {"w": (2, d)}, lambda p, x: F.linear(x, p.w.tanh())),
    "linear_of_product": (lambda d: {"w": (2, 1), "v": (1, d)}, lambda p, x: F.linear(x, p.w @ p.v)),
    "weight_by_input": (
        lambda d: {"w": (d, d)},
        lambda p, x: torch.matmul(x.unsqueeze(-2) * p.w, x.unsqueeze(-1)).squeeze(-1),
    ),
    "linear_bias_twice": (
        lambda d: {"w": (2, d), "b": (2,)},
        lambda p, x: F.linear(x, p.w, p.b) * torch.sigmoid(p.b),
    ),
    "linear_weight_twice": (lambda d: {"w": (2, d)}, lambda p, x: F.linear(x, p.w) + p.w.square().sum()),
    "slices": (lambda d: {"w": (4, d)}, lambda p, x: F.linear(x, p.w[:2]) * F.linear(x, p.w[2:]).sigmoid()),
    "view": (lambda d: {"w": (2 * d,)}, lambda p, x: F.linear(x, p.w.view(2, d_of(x)))),
    "normed_rows": (lambda d: {"w": (2, d)}, between_normed),
    "conv_kernel": (
        lambda d: {"w": (2, 1, 1)},
        lambda p, x: F.conv1d(x.reshape(len(x), 1, -1), p.w).flatten(1),
    ),
    "low_rank": (lambda d: {"u": (d, 1), "v": (1, 2)}, lambda p, x: (x @ p.u) @ p.v),
    "embedding": (lambda d: {"w": (3, d)}, by_place_in_batch),
    "index": (
        lambda d: {"w": (3, d)},
        lambda p, x: x * p.w[torch.arange(d_of(x)).remainder(3), torch.arange(d_of(x))],
    ),
    "distance": (
        lambda d: {"w": (2, d)},
        lambda p, x: torch.exp(-(x.unsqueeze(-2) - p.w).square().sum(-1)),
    ),
    "cdist": (lambda d: {"w": (2, d)}, by_distance),
    "cosine": (lambda d: {"w": (2, d)}, lambda p, x: F.cosine_similarity(x.unsqueeze(-2), p.w, dim=-1)),
    "power": (lambda d: {"w": (d,)}, lambda p, x: (x.square() + 0.5) ** p.w),
    "unused": (lambda d: {"w": (2, d), "v": (3,)}, lambda p, x: F.linear(x, p.w)),
}


@kind(odd=True, how=tuple(FUNCTIONAL), weight=3)
def functional(s: Site) -> Part:
    """Weights of the module itself, in functions."""
    shapes, function = FUNCTIONAL[s.o.how]
    return Part(function, **{name: 0.6 * torch.randn(shape) for name, shape in shapes(s.width).items()})


class Loose(Part):
    """Holds weights in a list, a dict or a tuple as well: parts of a module's state that PyTorch does not manage."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Loose:
        super()._apply(fn, recurse)
        for k, value in enumerate(self.loose):
            if not any(value is own for own in self.parameters()):
                value.data = fn(value.data)
                self.loose[k] = value
        return self


@kind(
    odd=True,
    how=("list_and_names", "dict_and_names", "unregistered", "parameter_list", "parameter_dict", "buffer"),
)
def listed(s: Site) -> Part:
    """Weights that are read from a list, a dict or a property of the module, not by their names."""
    d = s.width
    w, v = nn.Parameter(torch.randn(2, d)), nn.Parameter(torch.randn(2))
    match s.o.how:
        case "parameter_list":
            return Part(lambda p, x: F.linear(x, *p.values), values=nn.ParameterList([w, v]))
        case "parameter_dict":
            return Part(
                lambda p, x: F.linear(x, p.values["w"], p.values["v"]),
                values=nn.ParameterDict({"w": w, "v": v}),
            )
        case "buffer":
            part = Part(lambda p, x: F.linear(x, p.matrix).tanh() * p.v, v=v)
            part.register_buffer("matrix", torch.randn(2, d))
            return part
        case "dict_and_names":
            part = Part(lambda p, x: F.linear(x, p.table["w"], p.table["v"]), w=w, v=v)
            part.table = {"w": part.w, "v": part.v}
            return part
    part = Loose(lambda p, x: F.linear(x, *p.loose))
    part.loose = [w, v]
    if s.o.how == "list_and_names":
        part.w, part.v = w, v
    else:
        part.bias = nn.Parameter(torch.randn(2))
        part.function = lambda p, x: F.linear(x, *p.loose) * p.bias
    return part


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


class Shifted(nn.Module):
    """A parametrization with weights of its own."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(0.3 * torch.randn_like(like))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift.tanh()


PARAMETRIZED = (
    "exponential",
    "symmetric",
    "shifted",
    "chained",
    "cached",
    "orthogonal",
    "weight_norm",
    "weight_norm_old",
    "spectral_norm",
)


@kind(odd=True, how=PARAMETRIZED, weight=1.5)
def parametrized(s: Site) -> Part:
    layer = s.square() if s.o.how in {"symmetric", "orthogonal"} else nn.Linear(s.width, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old one is deprecated, and in use
        match s.o.how:
            case "symmetric":
                parametrize.register_parametrization(layer, "weight", Symmetric())
            case "shifted":
                parametrize.register_parametrization(layer, "weight", Shifted(layer.weight))
            case "chained":
                parametrize.register_parametrization(layer, "weight", Exponential())
                parametrize.register_parametrization(layer, "weight", Shifted(layer.weight))
            case "orthogonal":
                parametrizations.orthogonal(layer)
            case "weight_norm":
                parametrizations.weight_norm(layer)
            case "weight_norm_old":
                layer = nn.utils.weight_norm(layer)
            case "spectral_norm":
                layer = parametrizations.spectral_norm(layer).eval()
            case _:
                parametrize.register_parametrization(layer, "weight", Exponential())

    def run(p: Part, x: Tensor) -> Tensor:
        if s.o.how == "cached":
            with parametrize.cached():
                return p.map(x) + p.map(x).sin()
        return p.map(x)

    part = Part(run, map=layer)
    part.mode = False if s.o.how == "spectral_norm" else None
    return part
