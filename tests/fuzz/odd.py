"""Kinds of blocks over which tools for second derivatives are known to fall."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from fuzz.functions import FUNCTIONS, TwoInputs, cube, sine
from fuzz.parts import Part, Site, kind
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint


def joined(x: Tensor, y: Tensor) -> Tensor:
    """x + y, where their shapes agree; else y with the mean of each sample of x."""
    return x + y if x.shape == y.shape else y + x.flatten(1).mean(1).reshape(-1, *[1] * (y.ndim - 1))


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


@kind(odd=True, holds=True, how=("module", "function", "twice"))
def checkpointed(s: Site) -> Part:
    """What is thrown away and computed again in backward; use_reentrant=False, as PyTorch recommends."""

    def run(p: Part, x: Tensor) -> Tensor:
        if p.exact:
            return joined(x, p.body(x, p.given)) if s.o.how == "function" else p.body(x, p.given)
        given = p.given
        if s.o.how == "function":
            return checkpoint(lambda y: joined(y, p.body(y, given)), x, use_reentrant=False)
        if s.o.how == "twice":
            inner = p.body
            return checkpoint(
                lambda y: checkpoint(inner, y, given, use_reentrant=False), x, use_reentrant=False
            )
        return checkpoint(p.body, x, p.given, use_reentrant=False)

    return Part(run, body=s.chain())


@kind(odd=True, holds=True, how=("no_grad", "detach", "beside", "set_grad", "gate", "target", "data"))
def stopped(s: Site) -> Part:
    """Values through which no derivative is to flow, in the ways in which people write it."""
    body, how = s.chain(), s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        body, given = p.body, p.given
        match how:
            case "no_grad" | "set_grad":
                h = p.constant(lambda: body(x, given), "no_grad")
                return p.map(h)
            case "detach":
                return p.map(p.constant(lambda: body(x, given)))
            case "data" if p.notes is None:
                return p.map(body(x, given).data)
            case "data":
                return p.map(p.constant(lambda: body(x, given)))
            case "beside":
                return p.map(joined(body(x, given), 0.5 * p.constant(lambda: body(x, given))))
            case "gate":
                y = body(x, given)
                return p.map(y * torch.sigmoid(p.constant(lambda: y)))
        y = body(x, given)
        weight = p.constant(lambda: p.map.weight)
        return p.map(y) + F.linear(y, weight).sin()

    example = body(s.x, s.room.given)
    return Part(run, body=body, map=nn.Linear(example.shape[-1], 2))


@kind(odd=True, holds=True, how=("norm", "body", "softmax", "loss_scale"))
def in_float32(s: Site) -> Part:
    """Single precision inside, whatever the net is in."""

    def run(p: Part, x: Tensor) -> Tensor:
        body, given = p.body, p.given
        inner = torch.float64 if p.exact else torch.float32
        y = body(x, given)
        match s.o.how:
            case "norm":
                h = y.to(inner)
                return p.scale * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 0.01)).to(y.dtype)
            case "softmax":
                return p.scale * torch.softmax(y.to(inner), -1).to(y.dtype)
            case "loss_scale":
                return (p.scale * y).to(inner).sinh().to(x.dtype)
        return F.linear(y.to(inner), p.scale.to(inner)[None]).tanh().to(y.dtype)

    body = s.chain()
    width = body(s.x, s.room.given).shape[-1]
    return Part(run, body=body, scale=torch.ones(width))


@kind(odd=True, how=(*FUNCTIONS, "two_inputs"), weight=2.5)
def own_function(s: Site) -> Part:
    if s.o.how == "two_inputs":
        return Part(lambda p, x: TwoInputs.apply(p.map(x), x, 0.8), map=s.square())
    function = FUNCTIONS[s.o.how]
    return Part(lambda p, x: function.apply(p.map(x)), map=nn.Linear(s.width, 2))


@kind(odd=True, how=("first", "twice_undefined"))
def own_operator(s: Site) -> Part:
    """Of torch.library, which knows no forward mode."""
    function = sine if s.o.how == "first" else cube
    return Part(lambda p, x: function(p.map(x)), map=nn.Linear(s.width, 2))


LINALG = ("cholesky_inverse", "det", "slogdet", "inverse", "solve", "matrix_exp", "cholesky", "eigvalsh", "qr", "pinv",
          "weight_det", "weight_slogdet", "weight_solve", "cholesky_solve", "svdvals", "lu", "lstsq",
          "matrix_power", "solve_triangular", "nuclear")  # fmt: skip


@kind(odd=True, rank=1, how=LINALG, weight=2)
def algebra(s: Site) -> Part:
    """Matrices of 2 × 2 made of each sample, or a square weight; kept away from where they are singular."""
    how = s.o.how
    if how.startswith("weight"):
        square = torch.linalg.qr(torch.randn(s.width, s.width))[0] + 0.1 * torch.randn(s.width, s.width)

        def of_weight(p: Part, x: Tensor) -> Tensor:
            if how == "weight_solve":
                return torch.linalg.solve(p.w, x.T).T
            log = (
                torch.linalg.slogdet(p.w)[1] if how == "weight_slogdet" else torch.linalg.det(p.w).abs().log()
            )
            return x @ p.w.T + log

        return Part(of_weight, w=square)

    def of_samples(p: Part, x: Tensor) -> Tensor:
        a = 0.4 * p.map(x).reshape(-1, 2, 2)
        unit = torch.eye(2).to(x)
        positive = a @ a.mT + unit
        b = x[:, :1, None] + x.new_tensor([[1.0], [0.5]])
        match how:
            case "cholesky_inverse":
                y = torch.cholesky_inverse(a.tril(-1) + 1.5 * unit)
            case "det":
                y = torch.linalg.det(a + 2 * unit)
            case "slogdet":
                y = torch.linalg.slogdet(a + 2 * unit)[1]
            case "inverse":
                y = torch.linalg.inv(a + 2 * unit)
            case "solve":
                y = torch.linalg.solve(a + 2 * unit, b)
            case "matrix_exp":
                y = torch.linalg.matrix_exp(a)
            case "cholesky":
                y = torch.linalg.cholesky(positive)
            case "cholesky_solve":
                y = torch.cholesky_solve(b, torch.linalg.cholesky(positive))
            case "eigvalsh":
                y = torch.linalg.eigvalsh(positive + torch.diag(x.new_tensor([0.0, 2.0])))
            case "svdvals":
                y = torch.linalg.svdvals(a + torch.diag(x.new_tensor([1.0, 3.0])))
            case "qr":
                y = torch.linalg.qr(a + 2 * unit)[1]
            case "pinv":
                y = torch.linalg.pinv(a[:, :, :1] + 1)
            case "lu":
                y = torch.linalg.lu_factor(a + 2 * unit)[0]
            case "lstsq":
                y = torch.linalg.lstsq(a + 2 * unit, b)[0]
            case "matrix_power":
                y = torch.linalg.matrix_power(a + unit, 3)
            case "solve_triangular":
                y = torch.linalg.solve_triangular(a.tril(-1) + 1.5 * unit, b, upper=False)
            case _:
                y = torch.linalg.matrix_norm(a + torch.diag(x.new_tensor([1.0, 3.0])), "nuc")
        return y.reshape(len(x), -1)

    return Part(of_samples, map=nn.Linear(s.width, 4))


DERIVATIVES = ("gradient", "second", "force", "func_grad", "func_jvp", "jacrev", "inner_step", "hutchinson")


@kind(odd=True, holds=True, rank=1, how=DERIVATIVES, weight=2)
def derivative(s: Site) -> Part:
    """Derivatives inside forward: by the inputs, as in physics-informed nets, and by the net's own weights."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        body, given = p.body, p.given
        if (
            how == "inner_step"
        ):  # one step of descent by a weight, on a loss of this batch, as in meta-learning
            w = p.map.weight
            inner = (F.linear(x, w, p.map.bias) - x.flip(-1)).square().mean()
            (g,) = torch.autograd.grad(inner, w, create_graph=True)
            return body(F.linear(x, w - 0.3 * g, p.map.bias), given)
        if how.startswith("func") and not p.exact:

            def total(y: Tensor) -> Tensor:
                return body(y, given).flatten(1).sum(1)

            if how == "func_jvp":
                return torch.cat(
                    [part[:, None] for part in torch.func.jvp(total, (x,), (torch.ones_like(x),))], 1
                )
            return torch.func.grad(lambda y: total(y).sum())(x)
        if how == "jacrev" and not p.exact:
            return torch.func.vmap(torch.func.jacrev(lambda y: body(y[None], given).sum()))(x)
        y = p.constant(lambda: x) if how in {"gradient", "second"} else x
        y = y.clone()
        if not y.requires_grad:
            y.requires_grad_()
        with torch.enable_grad():
            u = body(y, given).flatten(1).sum(1)
            (g,) = torch.autograd.grad(u.sum(), y, create_graph=True)
            match how:
                case "second":
                    (h,) = torch.autograd.grad(g[:, 0].sum(), y, create_graph=True)
                    return torch.cat([u[:, None], g - h], 1)
                case "hutchinson":
                    v = torch.linspace(-1, 1, y.shape[1]).to(y)
                    (h,) = torch.autograd.grad((g * v).sum(), y, create_graph=True)
                    return torch.cat([u[:, None], (h * v).sum(1, keepdim=True)], 1)
                case "func_jvp":
                    return torch.stack([u, g.sum(1)], 1)
                case "force":
                    return torch.cat([u[:, None], -g], 1)
        return g

    members = {"map": s.square()} if how == "inner_step" else {}
    return Part(run, body=s.chain(), **members)


COUPLED = ("centred", "rolled", "pairs", "attention", "softmax", "deviation", "windows", "cumulative", "sorted",
           "graph", "two_halves", "whitened", "ends", "neighbors")  # fmt: skip


@kind(odd=True, rank=1, how=COUPLED, weight=3)
def coupled(s: Site) -> Part:
    """Samples that influence each other: all of them, neighbors, or those of a group."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        y, n = p.map(x), len(x)
        index = torch.arange(n)
        match how:
            case "centred":
                return y - y.mean(0)
            case "rolled":
                return torch.tanh(y) * y.roll(1, 0)
            case "pairs":
                return y * y[torch.where(index ^ 1 < n, index ^ 1, index)].sin()
            case "attention":
                return (y @ y.T).softmax(1) @ y
            case "softmax":
                return y.softmax(0)
            case "deviation":
                return y / (0.5 + y.square().mean(0)).sqrt()
            case "windows":
                return torch.stack([y[max(0, k - 1) : k + 2].square().mean(0) for k in range(n)])
            case "cumulative":
                return y.sin().cumsum(0)
            case "sorted":
                return y * y.sort(0).values
            case "graph":
                source = torch.where(index // 2 * 2 + 1 < n, index // 2 * 2 + 1, index)
                return y + torch.zeros_like(y).index_add(0, index // 2 * 2, y[source].tanh())
            case "two_halves":
                half = n // 2
                return torch.cat([y[:half] - y[:half].sum(0).sin(), y[half:] - y[half:].sum(0).sin()])
            case "ends":
                return y * y[-1].tanh()
            case "neighbors":
                return y + F.pad(y[:-1].tanh(), (0, 0, 1, 0))
        return y @ torch.linalg.inv(y.T @ y / n + torch.eye(y.shape[1]).to(y))

    return Part(run, map=nn.Linear(s.width, 2))


BUFFERS = ("counter", "moving_mean", "replaced", "attribute", "module_state", "last_seen", "cached_weight")


@kind(odd=True, rank=1, how=BUFFERS, weight=1.5)
def stateful(s: Site) -> Part:
    """What a forward pass leaves behind in buffers and attributes, and reads the next time."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        y = p.map(x)
        match how:
            case "counter":
                p.steps += 1
                return y / (1 + p.steps)
            case "moving_mean":
                p.mean.mul_(0.9).add_(0.1 * p.constant(lambda: y.mean(0)))
                return (y - p.mean.clone()).tanh()
            case "replaced":
                p.mean = 0.9 * p.mean + 0.1 * p.constant(lambda: y.mean(0))
                return (y - p.mean).tanh()
            case "attribute":
                p.calls = p.calls + 1
                return y.sin() * p.calls
            case "module_state":
                p.state = p.state + y.mean(0)  # carries its graph along, as recurrent models do
                return y + p.state.sin()
            case "last_seen":
                p.last = y
                return p.last.tanh() + y
        if p.cached is None:
            p.cached = p.map.weight * 2
        return F.linear(x, p.cached) + y

    part = Part(run, map=nn.Linear(s.width, 2))
    part.register_buffer("steps", torch.tensor(1))
    part.register_buffer("mean", torch.randn(2))
    part.calls, part.cached, part.last = 0, None, None
    part.register_buffer("state", torch.randn(2), persistent=False)
    return part


HOOKS = ("forward", "before", "backward", "tensor", "output_kept")


@kind(odd=True, how=HOOKS)
def hooked(s: Site) -> Part:
    layer = nn.Linear(s.width, 2)
    match s.o.how:
        case "forward":
            layer.register_forward_hook(lambda module, args, output: output.tanh() * 2)
        case "before":
            layer.register_forward_pre_hook(lambda module, args: (args[0].sin(),))
        case "backward":
            layer.register_full_backward_hook(lambda module, inputs, outputs: None)
        case "output_kept":
            layer.seen = []
            layer.register_forward_hook(lambda module, args, output: module.seen.append(output.detach()))
        case _:

            def seen(p: Part, x: Tensor) -> Tensor:
                y = p.map(x)
                if y.requires_grad:
                    y.register_hook(lambda g: g.clone())
                return y

            return Part(seen, map=layer)
    return Part(lambda p, x: p.map(x), map=layer)


WRITES = (
    "add",
    "relu",
    "item",
    "zero_column",
    "copy",
    "out",
    "masked_fill",
    "index_put",
    "scatter",
    "expand",
    "narrow",
)


@kind(odd=True, rank=1, how=WRITES, weight=1.5)
def written(s: Site) -> Part:
    """Writes in place, into what a layer gave."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        y = p.map(x)
        match how:
            case "add":
                y += x[:, :1].sin()
                y *= 0.7
            case "relu":
                y = F.relu_(y)
            case "item":
                y = y * (1.0 if y.shape[0] > 0 else 0.0)
                y[:, 0] = y[:, 0] * 2
            case "zero_column":
                y[:, -1].zero_()
            case "copy":
                z = torch.empty_like(y)
                z.copy_(y.sin())
                y = z
            case "out":
                z = torch.zeros(len(y), y.shape[1], dtype=y.dtype)
                for k in range(y.shape[1]):
                    z[:, k] = y[:, k].tanh()
                y = z
            case "masked_fill":
                y = y.masked_fill_(y.detach() > 0.5, 0.1)
            case "index_put":
                y[torch.zeros(1, dtype=torch.long)] = y[:1].sin()
            case "scatter":
                z = torch.zeros(len(y), 3, dtype=y.dtype)
                y = z.scatter_add_(1, torch.arange(y.shape[1]).remainder(3).expand(len(y), -1), y)
            case "expand":
                y = y.unsqueeze(1).expand(-1, 2, -1).flatten(1).tanh()
            case _:
                a, b = y.narrow(1, 0, 1), y.narrow(1, 1, 1)
                a.sigmoid_()
                y = a.clone() * b.tanh()
        return y

    return Part(run, map=nn.Linear(s.width, 2))


CONTROL = (
    "branch",
    "loop_of_samples",
    "early_exit",
    "python_number",
    "newton",
    "while",
    "vmap",
    "functional_call",
)


@kind(odd=True, rank=1, how=CONTROL, weight=1.5)
def controlled(s: Site) -> Part:
    """Python decides, by values or sample by sample; transforms of torch.func inside."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        match how:
            case "branch":
                return p.map(x).tanh() if x.sum() > -1e9 else x
            case "loop_of_samples":
                return torch.stack([p.map(one).tanh() for one in x])
            case "early_exit":
                y = p.map(x)
                return y if float(y.detach().norm()) < 0 else y.sin()
            case "python_number":
                return p.map(x) * (1 + len(x)) + x.mean().item()
            case "newton":
                z = p.map(x)
                for _ in range(3):
                    z = z - (z + z.sin() * 0.3 - p.map(x)) / (1 + 0.3 * z.cos())
                return z
            case "while":
                z, k = p.map(x), 0
                while k < 2 and bool(torch.isfinite(z).all()):
                    z, k = torch.tanh(z + p.map(x)), k + 1
                return z
            case "vmap":
                return torch.func.vmap(lambda one: p.map(one).sin())(x)
        weights = {name: value * 1.1 for name, value in p.map.named_parameters()}
        return torch.func.functional_call(p.map, weights, (x,)).tanh()

    return Part(run, map=nn.Linear(s.width, 2))
